//! `[virtual_ip]`: an address that one of several proxies has.

use pgherd_common::config::{Reader, Section};
use pgherd_vip::{Interface, Subnet, Vip};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualIp {
    /// The address, the same for every proxy.
    pub address: Subnet,
    /// This machine's interface to the link of the address.
    pub interface: Interface,
    /// This proxy's place among those that would have it: the lowest first, 0 never.
    pub priority: u32,
}

impl VirtualIp {
    /// For whoever acts.
    pub fn vip(&self) -> Vip {
        Vip::new(self.address, self.interface.clone())
    }
}

/// `None` where there is none, or after the problems were reported.
pub(super) fn read(r: &mut Reader, root: &mut Section) -> Option<VirtualIp> {
    let mut section = root.table(r, "virtual_ip");
    let address: Option<Subnet> = section.optional(r, "address");
    let interface: Option<Interface> = section.optional(r, "interface");
    let priority = section.or(r, "priority", "100");
    let missing = match (&address, &interface) {
        (Some(_), None) => {
            Some(("interface", "missing; the address needs this machine's interface to its link"))
        }
        (None, Some(_)) => Some(("address", "missing; an interface alone is no virtual IP")),
        (Some(_), Some(_)) | (None, None) => None,
    };
    if let Some((key, what)) = missing {
        let path = section.path_of(key);
        r.problem(&path, what);
    }
    section.finish(r);
    Some(VirtualIp { address: address?, interface: interface?, priority: priority? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_needs_an_address_and_an_interface() {
        for (text, complaint) in [
            ("address = \"10.0.0.100/24\"", "virtual_ip.interface: missing"),
            ("interface = \"eth0\"", "virtual_ip.address: missing"),
            ("address = \"10.0.0.100\"\ninterface = \"eth0\"", "no prefix length"),
        ] {
            let (mut reader, mut root) = Reader::parse(&format!("[virtual_ip]\n{text}\n"));
            let ip = read(&mut reader, &mut root);
            root.finish(&mut reader);
            let problems = reader.finish(ip).unwrap_err().to_string();
            assert!(problems.contains(complaint), "{text}: {problems}");
        }
    }
}
