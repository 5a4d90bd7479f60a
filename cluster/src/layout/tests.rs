use super::*;

#[test]
fn well_known_ports_are_those_of_the_documents() {
    let ports = Ports::well_known(3);
    let listed: Vec<(String, u16)> = ports
        .servers()
        .map(|service| (service.to_string(), ports.of(service)))
        .collect();
    let expected = [
        ("monitor", 5431),
        ("node1", 5432),
        ("node2", 5433),
        ("node3", 5434),
        ("ro1", 5440),
        ("ro2", 5441),
        ("ro3", 5442),
    ];
    assert_eq!(listed, expected.map(|(name, port)| (name.to_owned(), port)));
    assert_eq!((ports.of(Service::Proxy), ports.http), (6432, 9432));
}

#[test]
fn ports_from_a_base_are_consecutive() {
    for ro_count in [0, 1, 3, RO_MAX] {
        let ports = Ports::from_base(21000, ro_count).expect("fits");
        let mut listed: Vec<u16> = ports.servers().map(|service| ports.of(service)).collect();
        listed.extend([ports.of(Service::Proxy), ports.http]);
        let count = 6 + u16::from(ro_count);
        assert_eq!(listed, (21000..21000 + count).collect::<Vec<u16>>());
    }
}

#[test]
fn a_base_without_room_is_refused() {
    assert_eq!(Ports::from_base(0, 3), None);
    assert_eq!(Ports::from_base(65535, 0), None);
    assert_eq!(Ports::from_base(65528, 3), None);
    assert!(Ports::from_base(65527, 3).is_some());
}

#[test]
fn a_plan_survives_its_record() {
    for ports in [Ports::well_known(3), Ports::from_base(21000, 2).expect("fits")] {
        let nodes: Vec<(Service, u16)> = ports
            .data_nodes()
            .map(|service| (service, ports.of(service)))
            .collect();
        let (monitor, proxy) = (ports.of(Service::Monitor), ports.of(Service::Proxy));
        assert_eq!(Ports::recorded(monitor, &nodes, proxy, ports.http), Some(ports));
    }
    assert_eq!(Ports::recorded(1, &[(Service::Node(2), 3)], 4, 5), None);
}

#[test]
fn services_are_read_as_they_are_written() {
    let ports = Ports::well_known(RO_MAX);
    for service in ports.servers().chain([Service::Proxy]) {
        assert_eq!(service.to_string().parse(), Ok(service));
    }
    for wrong in [
        "", "node", "node0", "node4", "ro0", "ro10", "nodeone", "Monitor", "node-1",
    ] {
        assert!(wrong.parse::<Service>().is_err(), "{wrong:?}");
    }
}

#[test]
fn priorities_are_100_90_80() {
    let priorities: Vec<Option<u8>> = (1..=HA_NODES)
        .map(|number| Service::Node(number).priority())
        .collect();
    assert_eq!(priorities, [Some(100), Some(90), Some(80)]);
    assert_eq!(Service::Ro(1).priority(), None);
}

#[test]
fn a_folder_too_deep_for_sockets_is_seen() {
    assert!(Layout::new(PathBuf::from("/var/lib/halyard/cluster")).sockets_fit());
    assert!(!Layout::new(PathBuf::from(format!("/{}", "x".repeat(100)))).sockets_fit());
}

#[test]
fn a_purge_names_every_folder_that_a_server_can_have() {
    let layout = Layout::new(PathBuf::from("/c"));
    let entries = layout.own_entries();
    for service in Ports::well_known(RO_MAX).servers().chain([Service::Proxy]) {
        assert!(entries.contains(&layout.home(service)), "{service}");
    }
    for path in [
        layout.record(),
        layout.proxy_config(),
        layout.logs(),
        layout.etc(),
        layout.run(),
    ] {
        assert!(entries.contains(&path), "{}", path.display());
    }
}
