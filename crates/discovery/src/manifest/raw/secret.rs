//! The data of a Secret or ConfigMap. serde's errors quote what does not fit, and errors are logged and shown; so this reads
//! whatever is there without an error, and says no more than that it does not fit. Nor does its `Debug` show any of it.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The three entries that matter.
#[derive(Default)]
pub(crate) struct RawData {
    pub(crate) certificates: Option<Value>,
    pub(crate) key: Option<Value>,
    pub(crate) roots: Option<Value>,
    /// It is no map at all.
    pub(crate) unfit: bool,
}

impl fmt::Debug for RawData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawData").finish_non_exhaustive()
    }
}

/// One entry.
pub(crate) enum Value {
    Text(String),
    /// No text.
    Unfit,
}

struct ReadData;
struct ReadValue;

/// The visits of everything that is not what is wanted.
macro_rules! unfit {
    ($unfit:expr; $($visit:ident($of:ty)),+) => {
        $(fn $visit<E>(self, _: $of) -> Result<Self::Value, E> {
            Ok($unfit)
        })+

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok($unfit)
        }

        fn visit_none<E>(self) -> Result<Self::Value, E> {
            Ok($unfit)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            while items.next_element::<IgnoredAny>()?.is_some() {}
            Ok($unfit)
        }
    };
}

impl<'de> Visitor<'de> for ReadData {
    type Value = RawData;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of texts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<RawData, A::Error> {
        let mut data = RawData::default();
        while let Some(name) = entries.next_key::<String>()? {
            match name.as_str() {
                "tls.crt" => data.certificates = Some(entries.next_value()?),
                "tls.key" => data.key = Some(entries.next_value()?),
                "ca.crt" => data.roots = Some(entries.next_value()?),
                _ => {
                    entries.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(data)
    }

    unfit!(RawData { unfit: true, ..RawData::default() };
        visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_f64(f64), visit_str(&str));
}

impl<'de> Deserialize<'de> for RawData {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ReadData)
    }
}

impl<'de> Visitor<'de> for ReadValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::Text(text))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Unfit)
    }

    unfit!(Value::Unfit; visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_f64(f64));
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ReadValue)
    }
}
