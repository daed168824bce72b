//! The reference configurations are ones that the proxy takes.

use std::path::Path;

use pgherd_proxy::config::Config;

#[test]
fn the_reference_proxy_is_configured_for_the_reference_cluster() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/server4/proxy.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let config = Config::parse(&text).unwrap_or_else(|problems| panic!("{problems}"));
    let agent = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/server1/agent.toml");
    let agent = std::fs::read_to_string(agent).unwrap();
    assert!(agent.contains(&format!("name = \"{}\"", config.cluster)), "{:?}", config.cluster);
    for address in &config.agents {
        assert!(agent.contains(&address.to_string()), "{address} is nobody in [[members]]");
    }
    assert_eq!(config.agents.len(), 4);
}
