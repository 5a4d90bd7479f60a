use super::*;

#[test]
fn places_count_lines_and_characters_from_one() {
    let text = "a = 1\nü = \"é\" # x\n";
    for (offset, line, column) in [
        (0, 1, 1),
        (4, 1, 5),
        (6, 2, 1),
        (11, 2, 5),
        (text.len(), 3, 1),
        (999, 3, 1),
    ] {
        assert_eq!(Place::of(text, offset), Place { line, column }, "offset {offset}");
    }
}

#[test]
fn only_what_is_near_is_suggested() {
    let known = ["size", "min_size", "idle_timeout"];
    for (word, suggestion) in [
        ("sizee", "; did you mean \"size\"?"),
        ("SIZE", "; did you mean \"size\"?"),
        ("idle_timout", "; did you mean \"idle_timeout\"?"),
        ("idletimeout", "; did you mean \"idle_timeout\"?"),
        ("colour", ""),
        ("", ""),
    ] {
        assert_eq!(did_you_mean(word, known), suggestion, "{word}");
    }
}

#[test]
fn findings_read_like_a_compilers() {
    let mut findings = Findings::new("a\nb\n");
    findings.warning(Some(2..3), "second");
    findings.error(Some(0..1), "first");
    findings.error(None, "whole");
    let errors = ConfigErrors {
        file: "h.toml".into(),
        findings: findings.into_sorted(),
    };
    assert_eq!(
        errors.to_string(),
        "h.toml: error: whole\nh.toml:1:1: error: first\nh.toml:2:1: warning: second"
    );
}
