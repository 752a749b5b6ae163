//! Addresses and CIDR blocks in every spelling that an API server ever accepted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::at::At;
use crate::model::Peer;

/// Reads an `ipBlock`. A bad `except` voids the whole peer: without it the block would let in more than was meant.
pub(super) fn block(at: &At<'_>, consequence: &str) -> Option<Peer> {
    at.object(consequence)?;
    let known = at.only(&["cidr", "except"], consequence);
    let Some(cidr_at) = at.field("cidr") else {
        at.bad(format!("has no cidr: {consequence}"));
        return None;
    };
    let cidr = cidr(&cidr_at, consequence);
    let items = match at.field("except") {
        Some(at) => at.items(consequence)?,
        None => Vec::new(),
    };
    let except: Vec<Option<IpNet>> = items.iter().map(|item| exception(item, cidr, consequence)).collect();
    let except = except.into_iter().collect::<Option<Vec<IpNet>>>()?;
    Some(Peer::Block { cidr: cidr.filter(|_| known)?, except })
}

fn exception(at: &At<'_>, block: Option<IpNet>, consequence: &str) -> Option<IpNet> {
    let except = cidr(at, consequence)?;
    let block = block?;
    // `contains` is false for a block of the other family.
    if !block.contains(&except) || block == except {
        at.bad(format!("{except} is not strictly inside {block}: {consequence}"));
        return None;
    }
    Some(except)
}

/// Reads a block.
pub(super) fn cidr(at: &At<'_>, consequence: &str) -> Option<IpNet> {
    let text = at.text(consequence)?;
    match parse_cidr(text) {
        Ok((net, notes)) => {
            notes.into_iter().for_each(|note| at.note(note));
            Some(net)
        }
        Err(problem) => {
            at.bad(format!("\"{text}\": {problem}: {consequence}"));
            None
        }
    }
}

/// Reads an address of an object; `consequence` says what happens without it.
pub(super) fn address(at: &At<'_>, consequence: &str) -> Option<IpAddr> {
    let text = at.text(consequence)?;
    match parse_address(text) {
        Ok(parsed) => {
            if parsed.zeros {
                at.note(format!("leading zeros are decimal: read as {}", parsed.address));
            }
            Some(parsed.address.to_canonical())
        }
        Err(problem) => {
            at.bad(format!("\"{text}\": {problem}: {consequence}"));
            None
        }
    }
}

/// An address in text, if it is one.
pub(super) fn plain_address(text: &str) -> Option<IpAddr> {
    parse_address(text).ok().map(|parsed| parsed.address.to_canonical())
}

/// The block, host bits cleared, and how its spelling was understood.
fn parse_cidr(text: &str) -> Result<(IpNet, Vec<String>), String> {
    let Some((address, length)) = text.split_once('/') else {
        return Err("no CIDR block, it has no prefix length".to_owned());
    };
    let parsed = parse_address(address)?;
    let length = decimal(length).ok_or("the prefix length is no number")?;
    let (address, length, mapped) = match parsed.address {
        IpAddr::V6(v6) => match (v6.to_ipv4_mapped(), length) {
            (Some(v4), 96..=128) => (IpAddr::V4(v4), length - 96, true),
            (Some(_), _) => return Err("an IPv4-mapped block needs a prefix length of 96 or more".to_owned()),
            (None, _) => (IpAddr::V6(v6), length, false),
        },
        v4 @ IpAddr::V4(_) => (v4, length, false),
    };
    let length = u8::try_from(length).map_err(|_| "the prefix length is too large")?;
    let net = IpNet::new(address, length).map_err(|_| "the prefix length is too large")?;
    let mut notes = Vec::new();
    if parsed.zeros {
        notes.push(format!("leading zeros are decimal: read as {net}"));
    }
    if mapped {
        notes.push(format!("an IPv4-mapped block: read as {net}"));
    }
    if net != net.trunc() {
        notes.push(format!("bits behind the prefix are set: read as {}", net.trunc()));
    }
    Ok((net.trunc(), notes))
}

struct Parsed {
    address: IpAddr,
    /// A decimal field has leading zeros.
    zeros: bool,
}

fn parse_address(text: &str) -> Result<Parsed, String> {
    if text.contains('%') {
        return Err("zone identifiers are not allowed".to_owned());
    }
    let no_address = || "no IP address".to_owned();
    let Some((head, tail)) = text.rsplit_once(':') else {
        let (v4, zeros) = dotted(text).ok_or_else(no_address)?;
        return Ok(Parsed { address: v4.into(), zeros });
    };
    // The last 32 bits of an IPv6 address may be dotted, then with the same leading zeros.
    let (text, zeros) = match dotted(tail) {
        Some((v4, zeros)) => (format!("{head}:{v4}"), zeros),
        None => (text.to_owned(), false),
    };
    let v6: Ipv6Addr = text.parse().map_err(|_| no_address())?;
    Ok(Parsed { address: v6.into(), zeros })
}

/// Four decimal fields. Leading zeros never mean octal: an API server reads them as decimal.
fn dotted(text: &str) -> Option<(Ipv4Addr, bool)> {
    let mut octets = [0; 4];
    let mut fields = text.split('.');
    let mut zeros = false;
    for octet in &mut octets {
        let field = fields.next()?;
        *octet = u8::try_from(decimal(field)?).ok()?;
        zeros |= field.len() > 1 && field.starts_with('0');
    }
    fields.next().is_none().then(|| (octets.into(), zeros))
}

fn decimal(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Edge cases 57 to 62.
    #[test]
    fn spellings_of_a_block() {
        let cases = [
            ("10.0.0.0/8", "10.0.0.0/8", 0),
            ("192.168.1.5/24", "192.168.1.0/24", 1),
            ("010.0.0.0/8", "10.0.0.0/8", 1),
            ("010.001.0.9/08", "10.0.0.0/8", 2),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8", 1),
            ("::FFFF:a00:0/104", "10.0.0.0/8", 1),
            ("::ffff:10.0.0.1/128", "10.0.0.1/32", 1),
            ("2001:DB8:0:0::/32", "2001:db8::/32", 0),
            ("64:ff9b::192.0.2.0/120", "64:ff9b::c000:200/120", 0),
            ("0.0.0.0/0", "0.0.0.0/0", 0),
            ("::/0", "::/0", 0),
            ("10.0.0.1/32", "10.0.0.1/32", 0),
        ];
        for (text, expected, notes) in cases {
            let (net, said) = parse_cidr(text).unwrap_or_else(|problem| panic!("{text}: {problem}"));
            assert_eq!(net.to_string(), expected, "{text}");
            assert_eq!(said.len(), notes, "{text}: {said:?}");
        }
    }

    #[test]
    fn no_blocks() {
        for text in [
            "",
            "/",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            "10.0.0/8",
            "10.0.0.0.0/8",
            "10.0.0.256/8",
            " 10.0.0.0/8",
            "10.0.0.0/8 ",
            "0x0a.0.0.0/8",
            "fe80::1%eth0/64",
            "2001:db8::/129",
            "2001:db8::/4294967296",
            "::ffff:10.0.0.0/95",
            "::ffff:0.0.0.0/0",
            "1.2.3.4:80/8",
            "host/8",
        ] {
            assert!(parse_cidr(text).is_err(), "{text}");
        }
    }
}
