//! JSON: one object per request, one a line or all in one array. Objects are read one at a time,
//! and what is not needed of them is passed over.

use super::layout::{
    Clock, EXPECTED_TOKENS, Layout, Need, Row, Shape, Sink, Stamp, expected_time, recognise,
    tokens, unrecognised, wrong,
};
use super::sharegpt::Turn;
use super::source::broken;
use super::{Source, TraceError, sharegpt, timestamp};
use serde::de::value::MapDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Value};
use std::fmt;
use std::ops::ControlFlow;

pub(super) fn read(
    mut source: Source,
    asked: Option<&'static Layout>,
    need: Need,
    sink: &mut Sink<'_>,
) -> Result<(), TraceError> {
    if source.first_byte()? == Some(b'[') {
        return read_array(source, asked, need, sink);
    }
    let file = source.file.clone();
    let error = |line, message| TraceError::Line { file: file.clone(), line, message };
    let mut known = asked;
    while let Some((text, line)) = source.next_line()? {
        let layout = match known {
            Some(layout) => layout,
            None => {
                let object: Pairs =
                    serde_json::from_slice(text).map_err(|e| error(line, complaint(&e)))?;
                recognise(true, |name| object.has(name))
                    .ok_or_else(|| unrecognised(&file, line, &String::from_utf8_lossy(text)))?
            }
        };
        known = Some(layout);
        let mut parser = serde_json::Deserializer::from_slice(text);
        let fields = Pick(layout).deserialize(&mut parser).and_then(|f| parser.end().map(|()| f));
        let fields = fields.map_err(|e| error(line, complaint(&e)))?;
        let done = offer(layout, need, fields, sink).map_err(|message| error(line, message))?;
        if done.is_break() {
            break;
        }
    }
    Ok(())
}

/// Checks what was found of a request and hands it on; an entry without a request is passed over.
fn offer(
    layout: &'static Layout,
    need: Need,
    fields: Fields,
    sink: &mut Sink<'_>,
) -> Result<ControlFlow<()>, String> {
    let time = match (need, layout.time) {
        (Need::Lengths, _) => Stamp::Seconds(0.0),
        (Need::Requests, Some((name, clock))) => fields.time.stamp(layout, name, clock)?,
        (Need::Requests, None) => {
            return Err(format!(
                "the format {} has no arrival times; use the file in \
                 workload.synthetic.lengths.trace and say when requests arrive",
                layout.name
            ));
        }
    };
    let (prefill, decode) = match layout.shape {
        Shape::Conversations => sharegpt::lengths(&fields)?,
        _ => (fields.prefill.count(layout.prefill)?, fields.decode.count(layout.decode)?),
    };
    let hashes = fields.hashes.0;
    if let Some((name, tokens)) = layout.format.hashes()
        && hashes.len() > prefill.div_ceil(tokens) as usize
    {
        return Err(format!(
            "{name} holds {} hashes, and a prompt of {prefill} tokens has {}: one per {tokens} tokens",
            hashes.len(),
            prefill.div_ceil(tokens)
        ));
    }
    sink(layout, Row { time, prefill, decode, hashes })
}

/// What is wrong with the text, and at which column of its line.
fn complaint(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or_default();
    format!("column {}: {text}; expected one JSON object per request", error.column())
}

fn read_array(
    mut source: Source,
    asked: Option<&'static Layout>,
    need: Need,
    sink: &mut Sink<'_>,
) -> Result<(), TraceError> {
    let file = source.file.clone();
    let (reader, lines_before) = source.rest();
    let mut outcome = Outcome::Going;
    let mut parser = serde_json::Deserializer::from_reader(reader);
    let elements = Elements { layout: asked, need, sink, outcome: &mut outcome, file: &file };
    let read = parser.deserialize_seq(elements).and_then(|()| parser.end());
    let Err(error) = read else { return Ok(()) };
    let line = lines_before + error.line().max(1) as u64;
    match outcome {
        Outcome::Enough => Ok(()),
        Outcome::Wrong(message) => Err(TraceError::Line { file, line, message }),
        Outcome::Unknown(first) => Err(unrecognised(&file, line, &first)),
        Outcome::Going if error.is_io() => Err(broken(&file, line, &error.into())),
        Outcome::Going => Err(TraceError::Line { file, line, message: complaint(&error) }),
    }
}

/// Why the walk through an array ended before its end; the parser adds the line.
enum Outcome {
    Going,
    Enough,
    Wrong(String),
    Unknown(String),
}

struct Elements<'a, 'b> {
    layout: Option<&'static Layout>,
    need: Need,
    sink: &'a mut Sink<'b>,
    outcome: &'a mut Outcome,
    file: &'a str,
}

impl<'de> Visitor<'de> for Elements<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of requests in {}", self.file)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut stop = |outcome| {
            *self.outcome = outcome;
            Err(A::Error::custom("stopped"))
        };
        let mut known = self.layout;
        loop {
            let (layout, fields) = match known {
                Some(layout) => match seq.next_element_seed(Pick(layout))? {
                    Some(fields) => (layout, fields),
                    None => return Ok(()),
                },
                None => {
                    let Some(first) = seq.next_element::<Pairs>()? else { return Ok(()) };
                    let Some(layout) = recognise(true, |name| first.has(name)) else {
                        let object: Map<String, Value> = first.0.into_iter().collect();
                        return stop(Outcome::Unknown(Value::Object(object).to_string()));
                    };
                    let pairs = MapDeserializer::new(first.0.into_iter());
                    let fields: Result<_, serde_json::Error> = Pick(layout).visit_map(pairs);
                    (layout, fields.map_err(A::Error::custom)?)
                }
            };
            known = Some(layout);
            match offer(layout, self.need, fields, self.sink) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return stop(Outcome::Enough),
                Err(message) => return stop(Outcome::Wrong(message)),
            }
        }
    }
}

/// An object as it is written, whatever stands in it twice.
struct Pairs(Vec<(String, Value)>);

impl Pairs {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|pair| pair.0 == name)
    }
}

impl<'de> serde::Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// What an object says in the fields of a layout.
#[derive(Debug, Default)]
pub(super) struct Fields {
    time: Scalar,
    pub(super) prefill: Scalar,
    pub(super) decode: Scalar,
    /// Of conversations.
    pub(super) turns: Option<Vec<Turn>>,
    hashes: Hashes,
}

/// A list of whole numbers; `null` is none.
#[derive(Debug, Default, PartialEq)]
struct Hashes(Vec<u64>);

impl<'de> serde::Deserialize<'de> for Hashes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong = |found: &Value| {
            D::Error::custom(format!("{found} among the hashes of a prompt, not a whole number"))
        };
        let list = match Value::deserialize(deserializer)? {
            Value::Null => Vec::new(),
            Value::Array(list) => list,
            other => return Err(wrong(&other)),
        };
        let hashes = list.iter().map(|v| v.as_u64().ok_or_else(|| wrong(v)));
        Ok(Hashes(hashes.collect::<Result<_, _>>()?))
    }
}

/// Picks the fields of a layout out of an object.
struct Pick(&'static Layout);

impl<'de> DeserializeSeed<'de> for Pick {
    type Value = Fields;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Fields, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Pick {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Fields::default();
        let time = self.0.time.map_or("", |(name, _)| name);
        while let Some(slot) = map.next_key_seed(Key(self.0))? {
            match slot {
                Slot::Time => fill(&mut fields.time, map.next_value()?, time)?,
                Slot::Prefill => fill(&mut fields.prefill, map.next_value()?, self.0.prefill)?,
                Slot::Decode => fill(&mut fields.decode, map.next_value()?, self.0.decode)?,
                Slot::Turns => fill(&mut fields.turns, map.next_value()?, sharegpt::TURNS)?,
                Slot::Hashes => fill(&mut fields.hashes, map.next_value()?, "hash_ids")?,
                Slot::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(fields)
    }
}

/// Fills `slot` unless something else stands in it: who wrote the file may have meant either.
fn fill<T: Default + PartialEq, E: serde::de::Error>(
    slot: &mut T,
    value: T,
    name: &str,
) -> Result<(), E> {
    if *slot != T::default() && *slot != value {
        return Err(E::custom(format!("{name} stands twice with different values")));
    }
    *slot = value;
    Ok(())
}

enum Slot {
    Time,
    Prefill,
    Decode,
    Turns,
    Hashes,
    Other,
}

struct Key(&'static Layout);

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Slot;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Slot, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for Key {
    type Value = Slot;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E>(self, name: &str) -> Result<Slot, E> {
        let conversations = self.0.shape == Shape::Conversations;
        Ok(match name {
            _ if conversations && name == sharegpt::TURNS => Slot::Turns,
            _ if conversations && sharegpt::is_input(name) => Slot::Prefill,
            _ if conversations && sharegpt::is_output(name) => Slot::Decode,
            _ if self.0.time.is_some_and(|(time, _)| time == name) => Slot::Time,
            _ if self.0.format.hashes().is_some_and(|(hashes, _)| hashes == name) => Slot::Hashes,
            _ if self.0.prefill == name => Slot::Prefill,
            _ if self.0.decode == name => Slot::Decode,
            _ => Slot::Other,
        })
    }
}

/// A value that should be a number or, of dates, text.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Scalar {
    #[default]
    Missing,
    Number(f64),
    Text(String),
    /// `true`, a list, ...
    Other(&'static str),
}

impl Scalar {
    /// A count of tokens, zero included.
    pub(super) fn count(&self, name: &str) -> Result<u32, String> {
        let n = self.number(name)?;
        tokens(n).ok_or_else(|| wrong(name, &format_args!("{n}"), EXPECTED_TOKENS))
    }

    fn number(&self, name: &str) -> Result<f64, String> {
        match self {
            Scalar::Number(n) => Ok(*n),
            Scalar::Missing => Err(format!("no field {name}; expected a number")),
            Scalar::Text(text) => Err(wrong(name, text, "expected a number")),
            Scalar::Other(kind) => Err(format!("{name} is {kind}; expected a number")),
        }
    }

    fn stamp(&self, layout: &Layout, name: &str, clock: Clock) -> Result<Stamp, String> {
        if let (Scalar::Text(text), Clock::Date) = (self, clock) {
            let ns = timestamp::parse(text.as_bytes()).map(Stamp::Absolute);
            return ns.ok_or_else(|| wrong(name, text, &expected_time(layout)));
        }
        let n = self.number(name)?;
        clock.stamp(n).ok_or_else(|| wrong(name, &format_args!("{n}"), &expected_time(layout)))
    }
}

impl<'de> serde::Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyValue;

        impl<'de> Visitor<'de> for AnyValue {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_u64<E>(self, n: u64) -> Result<Scalar, E> {
                Ok(Scalar::Number(n as f64))
            }
            fn visit_i64<E>(self, n: i64) -> Result<Scalar, E> {
                Ok(Scalar::Number(n as f64))
            }
            fn visit_f64<E>(self, n: f64) -> Result<Scalar, E> {
                Ok(Scalar::Number(n))
            }
            fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(text.chars().take(40).collect()))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Scalar, E> {
                Ok(Scalar::Other("true or false"))
            }
            fn visit_unit<E>(self) -> Result<Scalar, E> {
                Ok(Scalar::Other("null"))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Scalar, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other("a list"))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other("an object"))
            }
        }

        deserializer.deserialize_any(AnyValue)
    }
}
