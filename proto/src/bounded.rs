//! Lists with a limit that holds while they are decoded.
//!
//! A serialized empty string is one byte and costs 24 in memory, so that the limit on a message's
//! length alone would let four megabytes become a hundred.

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use std::marker::PhantomData;

/// Most elements that room is made for before they have come.
const AHEAD: usize = 256;

/// Decodes a list of at most `MAX` elements; for `#[serde(deserialize_with = "...")]`.
///
/// # Errors
/// The list is longer. No more than `MAX` elements were decoded then.
pub fn list<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_seq(Bounded::<T, MAX>(PhantomData))
}

struct Bounded<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Bounded<T, MAX> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a list of at most {MAX}")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let announced = list.size_hint().unwrap_or(0);
        let too_long = || A::Error::custom(format!("more than {MAX} in a list"));
        if announced > MAX {
            return Err(too_long());
        }
        let mut out = Vec::with_capacity(announced.min(AHEAD));
        while let Some(one) = list.next_element()? {
            if out.len() == MAX {
                return Err(too_long());
            }
            out.push(one);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Names(#[serde(deserialize_with = "list::<_, _, 300>")] Vec<String>);

    #[test]
    fn a_list_ends_at_its_limit_as_it_is_decoded() {
        let names = |n: usize| Names(vec![String::new(); n]);
        for n in [0, 299, 300] {
            let bytes = codec::encode("names", &names(n), 1 << 10).unwrap();
            assert_eq!(codec::decode::<Names>("names", &bytes).unwrap(), names(n));
        }
        let bytes = codec::encode("names", &names(301), 1 << 10).unwrap();
        let why = codec::decode::<Names>("names", &bytes).unwrap_err().to_string();
        assert!(why.contains("more than 300 in a list"), "{why}");
    }
}
