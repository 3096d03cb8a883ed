use super::*;

#[test]
fn addresses_are_derived() {
    let listen = |text: &str| text.parse::<SocketAddr>().unwrap();
    assert_eq!(advertised(listen("127.0.0.2:2381"), "http://127.0.0.9:2380"), "127.0.0.2:2381");
    assert_eq!(advertised(listen("0.0.0.0:2381"), "https://node-2.example:2380"), "node-2.example:2381");
    assert_eq!(advertised(listen("[::]:2381"), "https://[fd00::2]:2380"), "[fd00::2]:2381");
    assert_eq!(expected_at("http://127.0.0.1:2380").as_deref(), Some("127.0.0.1:2381"));
    assert_eq!(expected_at("[fd00::2]:4000").as_deref(), Some("[fd00::2]:4001"));
    assert_eq!(expected_at("host:65535"), None);
    assert_eq!(expected_at("host"), None);
}
