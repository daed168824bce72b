//! What a configuration says: an address with its prefix, and an interface.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use pgherd_common::config::ConfigValue;

/// An address and the length of its subnet's prefix: `10.0.0.100/24`, `fd00::100/64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// The address.
    pub address: IpAddr,
    /// How many of its bits name the subnet.
    pub prefix: u8,
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) =
            text.split_once('/').ok_or_else(|| format!("{text:?} has no prefix length, such as /24"))?;
        let address: IpAddr = address.parse().map_err(|_| format!("{address:?} is no IP address"))?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let length = prefix.parse::<u8>().ok().filter(|length| (1..=longest).contains(length));
        let prefix = length.ok_or_else(|| format!("/{prefix} is no prefix length from 1 to {longest}"))?;
        if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
            return Err(format!("{address} cannot be the address of one machine on a link"));
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl ConfigValue for Subnet {
    const KIND: &'static str =
        "an address with its prefix length, such as \"10.0.0.100/24\" or \"fd00::100/64\"";

    fn from_value(value: &toml::Value) -> Result<Self, String> {
        let text = value.as_str().ok_or_else(|| format!("found {} {value}", value.type_str()))?;
        text.parse()
    }
}

/// The name of a network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface(String);

impl Interface {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Interface {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // What the kernel accepts.
        let fits = (1..=15).contains(&text.len()) && text != "." && text != "..";
        if !fits || text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control()) {
            return Err(format!("{text:?} is no name of a network interface"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl ConfigValue for Interface {
    const KIND: &'static str = "the name of a network interface, such as \"eth0\"";

    fn from_value(value: &toml::Value) -> Result<Self, String> {
        let text = value.as_str().ok_or_else(|| format!("found {} {value}", value.type_str()))?;
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_needs_a_prefix_and_must_be_one_machines() {
        let good: Subnet = "10.0.0.100/24".parse().unwrap();
        assert_eq!(good.to_string(), "10.0.0.100/24");
        assert_eq!("fd00::1:2/64".parse::<Subnet>().unwrap().prefix, 64);
        for (text, complaint) in [
            ("10.0.0.100", "no prefix length"),
            ("10.0.0/24", "no IP address"),
            ("10.0.0.1/33", "from 1 to 32"),
            ("fd00::1/129", "from 1 to 128"),
            ("10.0.0.1/0", "from 1 to 32"),
            ("0.0.0.0/8", "cannot be the address"),
            ("127.0.0.1/8", "cannot be the address"),
            ("ff02::1/64", "cannot be the address"),
        ] {
            let error = text.parse::<Subnet>().unwrap_err();
            assert!(error.contains(complaint), "{text}: {error}");
        }
    }

    #[test]
    fn an_interface_has_a_name_that_the_kernel_takes() {
        assert_eq!("eth0.100".parse::<Interface>().unwrap().as_str(), "eth0.100");
        for text in ["", "..", "a/b", "eth0:1", "with blank", "longer-than-the-kernel-takes"] {
            assert!(text.parse::<Interface>().is_err(), "{text}");
        }
    }
}
