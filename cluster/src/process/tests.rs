use std::process::{Child, Command};

use super::*;

/// A process that is ended with the test.
struct Running(Child);

impl Running {
    fn start(program: &str, dir: &Path, marks: &[(&str, &str)]) -> Running {
        let child = Command::new(program)
            .arg("60")
            .current_dir(dir)
            .env_remove(CLUSTER_MARK)
            .envs(marks.iter().copied())
            .spawn()
            .expect("sleep is there");
        // The kernel shows an environment a moment after the program has begun.
        let environment = format!("/proc/{}/environ", child.id());
        while std::fs::read(&environment).is_ok_and(|shown| shown.is_empty()) {
            std::thread::yield_now();
        }
        Running(child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn layout() -> (tempfile::TempDir, Layout) {
    let dir = tempfile::tempdir().expect("a folder");
    let layout = Layout::new(dir.path().canonicalize().expect("exists"));
    (dir, layout)
}

#[test]
fn a_process_with_the_mark_is_a_member_and_only_of_its_cluster() {
    let (_a, ours) = layout();
    let (_b, theirs) = layout();
    let dir = ours.dir().to_str().expect("text");
    let process = Running::start("sleep", ours.dir(), &[(CLUSTER_MARK, dir), (SERVICE_MARK, "ro2")]);
    let found = members(&ours);
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].pid, found[0].service, found[0].part),
        (process.0.id(), Service::Ro(2), Part::Other)
    );
    assert!(members(&theirs).is_empty());
    assert!(members_of(&ours, Service::Ro(1)).is_empty());
}

#[test]
fn neither_a_stranger_in_our_folder_nor_a_recycled_pid_is_a_member() {
    let (_dir, layout) = layout();
    let data = layout.data(Service::Node(1));
    std::fs::create_dir_all(&data).expect("made");
    // A shell of somebody who looks around in PGDATA, whose number stands in a stale postmaster.pid.
    let stranger = Running::start("sleep", &data, &[]);
    std::fs::write(data.join("postmaster.pid"), format!("{}\n", stranger.0.id())).expect("written");
    assert_eq!(postmaster_pid(&data), Some(stranger.0.id()));
    assert!(members(&layout).is_empty());
}

#[test]
fn a_server_without_a_readable_environment_is_known_by_its_folder() {
    let (_dir, layout) = layout();
    let data = layout.data(Service::Ro(1));
    std::fs::create_dir_all(&data).expect("made");
    let copy = layout.dir().join("postgres");
    std::fs::copy("/usr/bin/sleep", &copy).expect("copied");
    let server = Running::start(copy.to_str().expect("text"), &data, &[]);
    std::fs::write(data.join("postmaster.pid"), format!("{}\n/x\n", server.0.id())).expect("written");
    let found = members(&layout);
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].service, found[0].part),
        (Service::Ro(1), Part::Postmaster)
    );
    assert_eq!(
        leader(&found, Service::Ro(1)).map(|member| member.pid),
        Some(server.0.id())
    );
}

#[tokio::test]
async fn a_service_is_frozen_thawed_and_killed() {
    let (_dir, layout) = layout();
    let dir = layout.dir().to_str().expect("text");
    let mut process = Running::start(
        "sleep",
        layout.dir(),
        &[(CLUSTER_MARK, dir), (SERVICE_MARK, "proxy")],
    );
    assert!(!is_frozen(&members(&layout), Service::Proxy));
    assert!(freeze(&layout, Service::Proxy).await);
    assert!(is_frozen(&members(&layout), Service::Proxy));
    assert_eq!(thaw(&layout, Service::Proxy), 1);
    assert_eq!(thaw(&layout, Service::Proxy), 0);
    assert_eq!(kill(&layout, |member| member.service == Service::Proxy).await, 0);
    // A zombie until its parent looks, and no member for it.
    assert!(members(&layout).is_empty());
    assert!(!process.0.wait().expect("ended").success());
    assert!(!is_frozen(&members(&layout), Service::Proxy));
}

#[test]
fn status_lines_survive_odd_program_names() {
    let parsed = Status::parse("42 (a) b) (c) T 7 42 42 0 -1");
    assert_eq!(
        parsed,
        Some(Status {
            state: 'T',
            parent: 7
        })
    );
    assert!(parsed.is_some_and(|status| status.is_stopped() && !status.is_dead()));
    assert_eq!(Status::parse(""), None);
    assert_eq!(Status::parse("42 (x) Z"), None);
}

#[test]
fn the_environment_must_name_both_marks_in_full() {
    let dir = Path::new("/c");
    let environment = |text: &str| text.replace('|', "\0").into_bytes();
    let named = |text: &str| marked_service(dir, &environment(text));
    let both = format!("A=1|{CLUSTER_MARK}=/c|{SERVICE_MARK}=node2|");
    assert_eq!(named(&both), Some(Service::Node(2)));
    assert_eq!(named(&both.replace("=/c|", "=/c2|")), None);
    assert_eq!(named(&both.replace("node2", "node9")), None);
    assert_eq!(named(&format!("{CLUSTER_MARK}=/c|")), None);
    assert_eq!(named(&format!("X{both}")), Some(Service::Node(2)));
    assert_eq!(
        named(&both.replace(CLUSTER_MARK, &format!("X{CLUSTER_MARK}"))),
        None
    );
}

#[test]
fn removed_files_keep_their_path() {
    let path = PathBuf::from("/usr/bin/pg_autoctl");
    assert_eq!(undeleted(path.clone()), path);
    assert_eq!(undeleted(PathBuf::from("/usr/bin/pg_autoctl (deleted)")), path);
}

#[test]
fn the_holder_of_a_port_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = listener.local_addr().expect("bound").port();
    assert!(
        port_holder(port).ends_with(&format!("(pid {})", std::process::id())),
        "{}",
        port_holder(port)
    );
    drop(listener);
    assert_eq!(port_holder(port), "");
}

#[test]
fn only_listening_sockets_hold_a_port() {
    let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
         0: 0100007F:1538 0100007F:D431 01 0:0 00:0 0 101 0 111 1\n\
         1: 0100007F:1538 00000000:0000 0A 0:0 00:0 0 101 0 222 1\n";
    assert_eq!(listening_inode(table, 0x1538), Some("222".to_owned()));
    assert_eq!(listening_inode(table, 0xD431), None);
}
