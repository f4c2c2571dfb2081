//! Listings of a tree by an independent tool, and their comparison entry by entry.

use anyhow::Context;
use std::collections::BTreeMap;

/// Entries by path, as `list_tree.py` prints them.
pub(super) type Listing = BTreeMap<String, serde_json::Value>;

/// Extra room that a file may take on the new disk: rounding to blocks, metadata blocks.
const SLACK: u64 = 64 << 10;

/// Reads a listing.
pub(super) fn parse(text: &str) -> anyhow::Result<Listing> {
    let mut listing = Listing::new();
    for line in text.lines() {
        let value: serde_json::Value =
            serde_json::from_str(line).with_context(|| format!("in a listing: {line}"))?;
        let path = value.get("path").and_then(|p| p.as_str()).context("an entry without a path")?;
        listing.insert(path.to_owned(), value);
    }
    Ok(listing)
}

/// Every difference, one line each; the first 50.
pub(super) fn differences(before: &Listing, after: &Listing) -> Vec<String> {
    let mut found = Vec::new();
    for (path, old) in before {
        match after.get(path) {
            None => found.push(format!("{path}: gone")),
            Some(new) => fields(path, old, new, &mut found),
        }
    }
    found.extend(
        after.keys().filter(|p| !before.contains_key(*p)).map(|p| format!("{p}: was not there before")),
    );
    found.truncate(50);
    found
}

fn fields(path: &str, old: &serde_json::Value, new: &serde_json::Value, found: &mut Vec<String>) {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else {
        found.push(format!("{path}: not an object"));
        return;
    };
    let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for name in names {
        let (was, is) = (old.get(name), new.get(name));
        if name == "allocated" {
            let number = |v: Option<&serde_json::Value>| v.and_then(serde_json::Value::as_u64).unwrap_or(0);
            if number(is) > number(was) + SLACK {
                found.push(format!("{path}: takes {} bytes of disk, took {}", number(is), number(was)));
            }
        } else if was != is {
            let text =
                |v: Option<&serde_json::Value>| v.map_or_else(|| "nothing".into(), ToString::to_string);
            found.push(format!("{path}: {name} was {}, is {}", text(was), text(is)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_difference_is_named_and_more_holes_are_none() {
        let before =
            parse("{\"path\":\"a\",\"mode\":\"0o644\",\"allocated\":1048576}\n{\"path\":\"b\"}").unwrap();
        let after = parse("{\"path\":\"a\",\"mode\":\"0o600\",\"allocated\":0}\n{\"path\":\"c\"}").unwrap();
        let found = differences(&before, &after);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].contains("mode was \"0o644\", is \"0o600\""), "{found:?}");
        assert!(differences(&before, &before).is_empty());
        let grown =
            parse("{\"path\":\"a\",\"mode\":\"0o644\",\"allocated\":9048576}\n{\"path\":\"b\"}").unwrap();
        assert_eq!(differences(&before, &grown).len(), 1);
    }
}
