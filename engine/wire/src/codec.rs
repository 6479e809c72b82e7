//! Packets are declared once, in tables; struct, encoder, decoder, length and tests come from the declaration.
//!
//! A field type knows four things: its width, how to put itself, how to take itself, and how to make a legal sample
//! from a seed. A packet is a list of fields. What a list cannot say (two forms of one packet) is a plain function
//! beside the table, with the same tests. All integers are big-endian (Spec 10, 1).

use std::fmt;

pub use crate::limits::HEADER_BYTES;

/// What a peer did wrong: the bytes are no such packet. The receiver answers or hangs up; it never panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// The payload ended inside this field.
    Short { field: &'static str },
    /// Bytes were left after the last field.
    Long { extra_bytes: usize },
    /// A field holds a value outside its range.
    Range { field: &'static str, value: u64 },
    /// A packet of another type stood where this one was expected.
    Type { expected: u32, found: u32 },
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WireError::Short { field } => write!(f, "packet ends inside {field}"),
            WireError::Long { extra_bytes } => write!(f, "packet is {extra_bytes} bytes too long"),
            WireError::Range { field, value } => write!(f, "{field} has the illegal value {value}"),
            WireError::Type { expected, found } => write!(f, "packet of type {found} where {expected} was expected"),
        }
    }
}

impl std::error::Error for WireError {}

/// The 8 bytes in front of every payload. Spec 10, 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Packet number. Spec 10, 7.
    pub kind: u32,
    /// Payload bytes that follow; the header is not counted.
    pub length: u32,
}

impl Header {
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Header {
        let word = u64::from_be_bytes(*bytes);
        Header { kind: (word >> 32) as u32, length: word as u32 }
    }

    pub fn encode(self) -> [u8; HEADER_BYTES] {
        (u64::from(self.kind) << 32 | u64::from(self.length)).to_be_bytes()
    }
}

/// What is still to be decoded of one payload.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    rest: &'a [u8],
    /// Attribute records are in the form of the extension `times`.
    long_times: bool,
}

impl<'a> Input<'a> {
    pub fn new(payload: &'a [u8]) -> Input<'a> {
        Input { rest: payload, long_times: false }
    }

    /// Of a packet whose attribute records have long times or not: see `extension::LONG_TIMES`.
    pub fn with_times(payload: &'a [u8], long_times: bool) -> Input<'a> {
        Input { rest: payload, long_times }
    }

    pub fn has_long_times(&self) -> bool {
        self.long_times
    }

    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `count` bytes. Errors: `Short`.
    pub fn bytes(&mut self, count: usize, field: &'static str) -> Result<&'a [u8], WireError> {
        if self.rest.len() < count {
            return Err(WireError::Short { field });
        }
        let (head, tail) = self.rest.split_at(count);
        self.rest = tail;
        Ok(head)
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Errors: `Long` if anything is left.
    pub fn finish(self) -> Result<(), WireError> {
        if self.rest.is_empty() { Ok(()) } else { Err(WireError::Long { extra_bytes: self.rest.len() }) }
    }
}

/// A source of legal samples for tests and fuzzing: SplitMix64.
#[derive(Clone, Debug)]
pub struct Seed(pub u64);

impl Seed {
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in 0..bound. `bound`: at least 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }
}

/// One field of a packet.
pub trait Field: Sized {
    fn put(&self, out: &mut Vec<u8>);
    /// Errors: `Short`, or `Range` if the value is outside its type's range.
    fn take(input: &mut Input<'_>) -> Result<Self, WireError>;
    /// Bytes that `put` appends.
    fn width(&self) -> usize;
    fn sample(seed: &mut Seed) -> Self;
}

macro_rules! integer_field {
    ($($type:ty),*) => { $(
        impl Field for $type {
            #[inline]
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }
            #[inline]
            fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
                let bytes = input.bytes(size_of::<$type>(), stringify!($type))?;
                Ok(<$type>::from_be_bytes(bytes.try_into().expect("as many bytes as were asked for")))
            }
            fn width(&self) -> usize {
                size_of::<$type>()
            }
            fn sample(seed: &mut Seed) -> Self {
                // Small and large values alike, so that every width is met.
                let shift = seed.below(64) as u32;
                (seed.next_u64() >> shift) as $type
            }
        }
    )* };
}
integer_field!(u8, u16, u32, u64);

/// Bytes of a fixed count: challenges, digests.
impl<const N: usize> Field for [u8; N] {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        Ok(input.bytes(N, "fixed bytes")?.try_into().expect("as many bytes as were asked for"))
    }
    fn width(&self) -> usize {
        N
    }
    fn sample(seed: &mut Seed) -> Self {
        std::array::from_fn(|_| seed.next_u64() as u8)
    }
}

/// A field at the end of the packet that older peers leave out: absent when the packet ends before it.
impl<T: Field> Field for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        if input.is_empty() { Ok(None) } else { T::take(input).map(Some) }
    }
    fn width(&self) -> usize {
        self.as_ref().map_or(0, T::width)
    }
    fn sample(seed: &mut Seed) -> Self {
        (seed.below(2) == 1).then(|| T::sample(seed))
    }
}

/// Records repeated to the end of the packet.
impl<T: Field> Field for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        for value in self {
            value.put(out);
        }
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        let mut values = Vec::new();
        while !input.is_empty() {
            values.push(T::take(input)?);
        }
        Ok(values)
    }
    fn width(&self) -> usize {
        self.iter().map(T::width).sum()
    }
    fn sample(seed: &mut Seed) -> Self {
        (0..seed.below(5)).map(|_| T::sample(seed)).collect()
    }
}

/// A packet of a fixed number.
pub trait Packet: Field {
    /// Packet number. Spec 10, 7.
    const TYPE: u32;
    const NAME: &'static str;

    /// Header and payload.
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + self.width());
        self.encode_into(&mut out);
        out
    }

    /// Appends header and payload.
    fn encode_into(&self, out: &mut Vec<u8>) {
        let length = u32::try_from(self.width()).expect("a packet is far below 4 GiB: its fields are bounded");
        out.extend_from_slice(&Header { kind: Self::TYPE, length }.encode());
        self.put(out);
    }

    /// The packet from its whole payload. Errors: `Short`, `Long`, `Range`.
    fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let mut input = Input::new(payload);
        let packet = Self::take(&mut input)?;
        input.finish()?;
        Ok(packet)
    }
}

/// Declares records: fields in wire order that occur inside packets.
macro_rules! records {
    ($( $(#[$meta:meta])* $name:ident { $( $(#[$field_meta:meta])* $field:ident : $type:ty ),* $(,)? } )*) => { $(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name { $( $(#[$field_meta])* pub $field: $type, )* }

        impl $crate::codec::Field for $name {
            #[allow(unused_variables, reason = "packets without fields write nothing")]
            fn put(&self, out: &mut Vec<u8>) {
                $( $crate::codec::Field::put(&self.$field, out); )*
            }
            #[allow(unused_variables, reason = "packets without fields read nothing")]
            fn take(input: &mut $crate::codec::Input<'_>) -> Result<Self, $crate::codec::WireError> {
                Ok($name { $( $field: <$type as $crate::codec::Field>::take(input)?, )* })
            }
            fn width(&self) -> usize {
                0 $( + $crate::codec::Field::width(&self.$field) )*
            }
            #[allow(unused_variables, reason = "packets without fields need no seed")]
            fn sample(seed: &mut $crate::codec::Seed) -> Self {
                $name { $( $field: <$type as $crate::codec::Field>::sample(seed), )* }
            }
        }
    )* };
}
pub(crate) use records;

/// Declares packets: name, number, fields in wire order. Makes the table `PACKETS` of the module.
macro_rules! packets {
    ($( $(#[$meta:meta])* $name:ident = $number:literal { $( $(#[$field_meta:meta])* $field:ident : $type:ty ),* $(,)? } )*) => {
        $crate::codec::records! { $( $(#[$meta])* $name { $( $(#[$field_meta])* $field : $type ),* } )* }

        $( impl $crate::codec::Packet for $name {
            const TYPE: u32 = $number;
            const NAME: &'static str = stringify!($name);
        } )*

        /// The packets of this module, for tests, fuzzing and dumps.
        pub(crate) const PACKETS: &[$crate::codec::Entry] = &[ $( $crate::codec::Entry::of::<$name>(), )* ];
    };
}
pub(crate) use packets;

/// One packet form, with its operations by function pointer.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub kind: u32,
    pub name: &'static str,
    /// Decodes a payload and encodes the result again (payload only).
    pub recode: fn(&[u8]) -> Result<Vec<u8>, WireError>,
    /// Payload of a legal sample.
    pub sample: fn(&mut Seed) -> Vec<u8>,
    /// The decoded packet as text.
    pub dump: fn(&[u8]) -> Result<String, WireError>,
}

impl Entry {
    pub(crate) const fn of<P: Packet + fmt::Debug>() -> Entry {
        Entry { kind: P::TYPE, name: P::NAME, recode: recode::<P>, sample: sample::<P>, dump: dump::<P> }
    }
}

fn recode<P: Packet>(payload: &[u8]) -> Result<Vec<u8>, WireError> {
    let packet = P::decode(payload)?;
    let mut out = Vec::with_capacity(packet.width());
    packet.put(&mut out);
    Ok(out)
}

fn sample<P: Packet>(seed: &mut Seed) -> Vec<u8> {
    let packet = P::sample(seed);
    let mut out = Vec::new();
    packet.put(&mut out);
    assert_eq!(out.len(), packet.width(), "{} declares its length", P::NAME);
    out
}

fn dump<P: Packet + fmt::Debug>(payload: &[u8]) -> Result<String, WireError> {
    Ok(format!("{:?}", P::decode(payload)?))
}
