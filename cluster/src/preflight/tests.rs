use super::*;

#[test]
fn a_taken_port_is_named_with_its_service_and_holder() {
    // Below the ephemeral ports, so that no connection of somebody else's comes to sit on it meanwhile.
    let (base, port) = (21_900..22_000u16)
        .find_map(|port| Some((TcpListener::bind((HOST, port)).ok()?, port)))
        .expect("one of a hundred is free");
    let Err(error) = port_is_free(port, "ro2".into()) else {
        panic!("it is taken")
    };
    let message = error.to_string();
    let holder = format!("(pid {})", std::process::id());
    assert!(
        message.contains(&port.to_string()) && message.contains("ro2") && message.contains(&holder),
        "{message}"
    );
    drop(base);
    // A process that another test starts meanwhile holds a copy of the socket until it runs its program.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while port_is_free(port, "ro2".into()).is_err() {
        assert!(std::time::Instant::now() < deadline, "it is free now");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn a_folder_with_something_else_in_it_is_left_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("thesis.tex"), "years of work").expect("written");
    let owner = Owner::current().expect("a user");
    let error = claim_folder(&owner, dir.path()).map_err(|error| error.to_string());
    assert!(error.is_err_and(|message| message.contains("something else")));
    assert!(dir.path().join("thesis.tex").exists());
    assert!(existing_folder(dir.path()).is_err());
}

#[test]
fn a_folder_whose_path_is_too_long_for_sockets_is_refused_and_not_left_behind() {
    let dir = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir()
        .expect("a folder");
    let deep = dir.path().join("x".repeat(100));
    let owner = Owner::current().expect("a user");
    let error = claim_folder(&owner, &deep).map_err(|error| error.to_string());
    assert!(error.is_err_and(|message| message.contains("too long")));
    assert!(!deep.exists());
}

#[test]
fn a_new_folder_is_the_servers_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir()
        .expect("a folder");
    let owner = Owner::current().expect("a user");
    let layout = claim_folder(&owner, &dir.path().join("a/b")).expect("claimed");
    let mode = std::fs::metadata(layout.dir())
        .expect("there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
    assert!(owner.may("-w", layout.dir()));
}
