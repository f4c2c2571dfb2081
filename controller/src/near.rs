//! Names close to one that was mistyped.

/// At most three of `known` that are close to `name`, closest first.
pub fn near<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut scored: Vec<(usize, &str)> = known
        .into_iter()
        .filter_map(|k| {
            let d = distance(name, k);
            let close = d <= 1 + name.chars().count().min(k.chars().count()) / 4;
            let part = name.len() >= 2 && (k.contains(name) || (k.len() >= 2 && name.contains(k)));
            (close || part).then_some((d, k))
        })
        .collect();
    scored.sort();
    scored.dedup();
    scored.into_iter().take(3).map(|(_, k)| k).collect()
}

/// A sentence with the near names, or with all of them when there are few.
pub fn did_you_mean<'a>(
    what: &str,
    name: &str,
    known: impl IntoIterator<Item = &'a str> + Clone,
) -> Option<String> {
    let close = near(name, known.clone());
    if !close.is_empty() {
        return Some(format!("did you mean {}?", close.join(" or ")));
    }
    let mut all: Vec<&str> = known.into_iter().collect();
    all.sort_unstable();
    all.dedup();
    (1..=8).contains(&all.len()).then(|| format!("{what}: {}", all.join(", ")))
}

/// Edits (insert, delete, replace, swap of neighbours) between two words.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let cost = usize::from(a[i - 1] != b[j - 1]);
                let mut d = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + cost);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    d = d.min(rows[i - 2][j - 2] + 1);
                }
                d
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_are_recognised_and_strangers_are_not() {
        let known = ["web", "web-2", "database", "redis"];
        assert_eq!(near("wbe", known), ["web"]);
        assert_eq!(near("databse", known), ["database"]);
        assert_eq!(near("web", ["web-2", "other"]), ["web-2"]);
        assert!(near("zzz", known).is_empty());
        assert!(near("", known).is_empty());
    }

    #[test]
    fn few_names_are_all_shown() {
        assert_eq!(did_you_mean("known", "zzz", ["b", "a"]).unwrap(), "known: a, b");
        assert_eq!(did_you_mean("known", "a1", ["a", "bbb"]).unwrap(), "did you mean a?");
        assert_eq!(did_you_mean("known", "zzz", std::iter::empty::<&str>()), None);
    }
}
