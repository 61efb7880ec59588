//! How a scenario's parts are written in a file, where that is not how the program holds them.

/// Numbers that a file may be too small for: TOML's end at 2^63 - 1. Beyond, a seed is a text.
pub(super) mod seed {
    use std::fmt;

    use serde::de::{Deserializer, Error, Visitor};
    use serde::ser::Serializer;

    pub(in crate::machine) fn serialize<S: Serializer>(
        seed: &u64,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match i64::try_from(*seed) {
            Ok(seed) => to.serialize_i64(seed),
            Err(_) => to.serialize_str(&format!("{seed:#x}")),
        }
    }

    pub(in crate::machine) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<u64, D::Error> {
        from.deserialize_any(Seed)
    }

    struct Seed;

    impl Visitor<'_> for Seed {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a seed, a number from 0 to 2^64 - 1 or a text \"0x...\"")
        }

        fn visit_u64<E: Error>(self, seed: u64) -> Result<u64, E> {
            Ok(seed)
        }

        fn visit_i64<E: Error>(self, seed: i64) -> Result<u64, E> {
            u64::try_from(seed)
                .map_err(|_| E::invalid_value(serde::de::Unexpected::Signed(seed), &self))
        }

        fn visit_str<E: Error>(self, seed: &str) -> Result<u64, E> {
            seed.strip_prefix("0x")
                .and_then(|hex| u64::from_str_radix(hex, 16).ok())
                .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(seed), &self))
        }
    }
}
