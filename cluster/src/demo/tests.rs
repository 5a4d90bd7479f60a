use super::*;

fn served(counts: &[(&str, usize)]) -> BTreeMap<String, usize> {
    counts
        .iter()
        .map(|(port, count)| ((*port).to_owned(), *count))
        .collect()
}

#[test]
fn a_fair_spread_passes_and_an_unfair_one_does_not() {
    let replicas = ["1", "2", "3"].map(str::to_owned);
    assert_eq!(
        judge_spread(&served(&[("1", 90), ("2", 110), ("3", 100)]), &replicas),
        Ok(())
    );
    assert!(
        judge_spread(&served(&[("1", 150), ("2", 150)]), &replicas).is_err_and(|why| why.contains("port 3"))
    );
    assert!(judge_spread(&served(&[("1", 145), ("2", 145), ("3", 10)]), &replicas).is_err());
    let on_primary = served(&[("1", 100), ("2", 100), ("3", 99), ("5432", 1)]);
    assert!(judge_spread(&on_primary, &replicas).is_err_and(|why| why.contains("port 5432")));
    assert!(judge_spread(&served(&[]), &replicas).is_err());
}
