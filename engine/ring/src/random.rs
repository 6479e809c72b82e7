//! Random numbers of the real drivers: the kernel's, fetched some at a time.

/// A stock of random numbers, good enough for secrets.
#[derive(Default)]
pub(crate) struct Random {
    stock: Vec<u64>,
}

/// Numbers fetched at a time. The kernel gives up to 256 bytes in one piece.
const FETCHED: usize = 32;

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        if self.stock.is_empty() {
            let mut bytes = [0u8; FETCHED * 8];
            getrandom::fill(&mut bytes).expect("the kernel always has random numbers on Linux");
            let number = |bytes: &[u8; 8]| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
            self.stock.extend(bytes.as_chunks().0.iter().map(number));
        }
        self.stock.pop().expect("just filled")
    }
}
