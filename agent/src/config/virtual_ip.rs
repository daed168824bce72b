//! `[virtual_ip]`: an address that follows the primary.

use std::time::Duration;

use pgherd_common::config::{ConfigValue, Reader, Section};
use pgherd_core::node::AddressRules;
use pgherd_vip::{Interface, Subnet, Vip};
use toml::Value;

/// What is done while another machine answers for the address, however long it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// It is not taken.
    Refuse,
    /// It is taken once `check_timeout` is over.
    Take,
}

impl ConfigValue for Conflict {
    const KIND: &'static str = "\"refuse\" or \"take\"";

    fn from_value(value: &Value) -> Result<Self, String> {
        match value.as_str() {
            Some("refuse") => Ok(Self::Refuse),
            Some("take") => Ok(Self::Take),
            Some(_) | None => Err(format!("found {} {value}", value.type_str())),
        }
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualIp {
    /// The address, the same on every node.
    pub address: Subnet,
    /// This node's interface to the link of the address.
    pub interface: Interface,
    /// Whether nobody is promoted here while another machine answers for it.
    pub check_before_promotion: bool,
    /// How long another machine may answer for it until `conflict` counts.
    pub check_timeout: Duration,
    /// What then.
    pub conflict: Conflict,
}

impl VirtualIp {
    /// `None` where there is none, or after the problems were reported.
    pub(super) fn read(r: &mut Reader, mut section: Section) -> Option<Self> {
        let address: Option<Subnet> = section.optional(r, "address");
        let interface: Option<Interface> = section.optional(r, "interface");
        let check_before_promotion = section.or(r, "check_before_promotion", "false");
        let check_timeout = section.positive(r, "check_timeout", "\"15s\"");
        let conflict = section.or(r, "conflict", "\"refuse\"");
        section.finish(r);
        match (&address, &interface) {
            (Some(_), None) => {
                r.problem(
                    "virtual_ip.interface",
                    "missing; the address needs this node's interface to its link",
                );
            }
            (None, Some(_)) => {
                r.problem("virtual_ip.address", "missing; an interface alone is no virtual IP");
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        Some(Self {
            address: address?,
            interface: interface?,
            check_before_promotion: check_before_promotion?,
            check_timeout: check_timeout?,
            conflict: conflict?,
        })
    }

    /// For whoever decides.
    pub fn rules(&self) -> AddressRules {
        AddressRules {
            name: self.address.to_string(),
            check_before_promotion: self.check_before_promotion,
            check_timeout: self.check_timeout,
            take_anyway: self.conflict == Conflict::Take,
        }
    }

    /// For whoever acts.
    pub fn vip(&self) -> Vip {
        Vip::new(self.address, self.interface.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<VirtualIp, String> {
        let (mut reader, mut root) = Reader::parse(text);
        let section = root.table(&mut reader, "virtual_ip");
        let read = VirtualIp::read(&mut reader, section);
        root.finish(&mut reader);
        reader.finish(read).map_err(|problems| problems.to_string())
    }

    #[test]
    fn it_needs_an_address_and_an_interface() {
        let vip = read("[virtual_ip]\naddress = \"10.0.0.100/24\"\ninterface = \"eth0\"\n").unwrap();
        assert_eq!(vip.rules().name, "10.0.0.100/24");
        assert!(!vip.check_before_promotion && vip.conflict == Conflict::Refuse);
        for (text, complaint) in [
            ("address = \"10.0.0.100/24\"", "virtual_ip.interface: missing"),
            ("interface = \"eth0\"", "virtual_ip.address: missing"),
            ("address = \"10.0.0.100\"\ninterface = \"eth0\"", "no prefix length"),
            (
                "address = \"10.0.0.1/24\"\ninterface = \"eth0\"\nconflict = \"fight\"",
                "\"refuse\" or \"take\"",
            ),
        ] {
            let problems = read(&format!("[virtual_ip]\n{text}\n")).unwrap_err();
            assert!(problems.contains(complaint), "{text}: {problems}");
        }
    }
}
