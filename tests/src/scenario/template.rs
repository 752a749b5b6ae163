//! `${…}` in scenario objects: addresses that are known only once the cluster stands.
//!
//! `${pod.x/b.ip4}`, `${ext.web.ip6}`, `${node.n1.ip4}`, and `${cidr(pod.x/b.ip4, 28)}`: the block of that length
//! which holds the address.

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde_json::Value;
use std::net::IpAddr;

/// Replaces templates in all strings of `value`; `address` knows `pod.x/b.ip4` and its like.
pub(super) fn expand(value: &mut Value, address: &impl Fn(&str) -> Option<IpAddr>) -> Result<()> {
    match value {
        Value::String(text) => *text = expand_text(text, address)?,
        Value::Array(items) => items.iter_mut().try_for_each(|item| expand(item, address))?,
        Value::Object(fields) => fields.values_mut().try_for_each(|field| expand(field, address))?,
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    Ok(())
}

fn expand_text(text: &str, address: &impl Fn(&str) -> Option<IpAddr>) -> Result<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let end = rest[start..].find('}').with_context(|| format!("{text}: ${{ without }}"))? + start;
        out.push_str(&rest[..start]);
        out.push_str(&evaluate(rest[start + 2..end].trim(), address)?);
        rest = &rest[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

fn evaluate(expression: &str, address: &impl Fn(&str) -> Option<IpAddr>) -> Result<String> {
    let lookup = |name: &str| address(name).with_context(|| format!("${{{expression}}}: no address {name}"));
    let Some(arguments) = expression.strip_prefix("cidr(").and_then(|rest| rest.strip_suffix(')')) else {
        return Ok(lookup(expression)?.to_string());
    };
    let Some((name, length)) = arguments.split_once(',') else {
        bail!("${{{expression}}}: cidr takes an address and a length");
    };
    let length = length.trim().parse().with_context(|| format!("${{{expression}}}: length"))?;
    let block = IpNet::new(lookup(name.trim())?, length).with_context(|| format!("${{{expression}}}"))?;
    Ok(block.trunc().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(name: &str) -> Option<IpAddr> {
        (name == "pod.x/b.ip4").then(|| "10.244.0.18".parse().unwrap())
    }

    #[test]
    fn addresses_and_blocks_are_filled_in() {
        let mut value = serde_json::json!({"a": ["${pod.x/b.ip4}/32", "${cidr(pod.x/b.ip4, 28)}"], "b": 1});
        expand(&mut value, &address).unwrap();
        assert_eq!(value, serde_json::json!({"a": ["10.244.0.18/32", "10.244.0.16/28"], "b": 1}));
    }

    #[test]
    fn an_unknown_name_is_an_error_that_names_it() {
        let error = expand(&mut "${pod.x/c.ip4}".into(), &address).unwrap_err();
        assert!(error.to_string().contains("pod.x/c.ip4"), "{error}");
        assert!(expand(&mut "${pod.x/b.ip4".into(), &address).is_err());
        assert!(expand(&mut "${cidr(pod.x/b.ip4)}".into(), &address).is_err());
    }
}
