//! Read-ahead of one open file: which ranges are fetched before they are asked for, and the buffers they land in.
//!
//! A segment is one range inside one chunk that one task fetches from front to back; readers wait until it has grown
//! far enough and take slices of its pieces. A reader that goes on where it stopped gets a window that doubles up to
//! `WINDOW_BYTES_MAX`, fetched by several segments side by side; one that jumps loses it. Unlike the stock client's
//! levels (Spec 72, 5.2) the window grows with every read, so that a short file profits too.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use ring::local::Notify;
use wire::limits::CHUNK_BYTES;

use crate::Errno;
use crate::files::Share;
use crate::types::Piece;

/// Bytes fetched ahead of a sequential reader at most.
const WINDOW_BYTES_MAX: u64 = 16 << 20;
const WINDOW_BYTES_MIN: u64 = 128 << 10;
/// Largest segment: so many requests share a full window.
const SEGMENTS_PER_WINDOW: u64 = 8;
/// A read this far from the expected place still belongs to the same stream: the kernel's own requests overtake
/// each other.
const NEAR_BYTES: u64 = 512 << 10;
/// Kept behind the reader for the same reason.
const BEHIND_BYTES: u64 = 1 << 20;

/// What one handle has read and reads ahead.
#[derive(Default)]
pub(crate) struct Reader {
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    stream: Stream,
    /// Ascending by start; they may overlap where a reader jumped back.
    segments: VecDeque<Rc<Segment>>,
    /// It was read since the last sweep.
    is_in_use: bool,
}

/// The pure part: where a sequential reader is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stream {
    /// Where the last read ended.
    expected: u64,
    /// Bytes to have ahead; 0: not sequential.
    window: u64,
}

impl Stream {
    /// A read of `start..end` came: the window from now on.
    fn advance(self, start: u64, end: u64) -> Stream {
        let is_exact = start == self.expected;
        let is_near = self.window > 0 && start.abs_diff(self.expected) <= NEAR_BYTES;
        let window = match (is_exact, is_near) {
            (true, _) => (self.window * 2).max(2 * (end - start)).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX),
            (false, true) => self.window,
            (false, false) => 0,
        };
        let expected = if is_near { self.expected.max(end) } else { end };
        Stream { expected, window }
    }

    /// Ranges to fetch now, given that everything up to `horizon` is fetched or on its way.
    fn plan(self, horizon: u64, file_length: u64) -> Vec<Range<u64>> {
        let mut ranges = Vec::new();
        let target = (self.expected + self.window).min(file_length);
        let mut start = horizon.max(self.expected);
        // Half a window in one go, not a little with each read.
        if self.window == 0 || start >= target || (start > self.expected + self.window / 2 && target < file_length) {
            return ranges;
        }
        let segment = (self.window / SEGMENTS_PER_WINDOW).max(2 * WINDOW_BYTES_MIN);
        while start < target {
            let end = (start + segment).min(chunk_end(start)).min(file_length);
            ranges.push(start..end);
            start = end;
        }
        ranges
    }
}

/// Where the chunk with this position ends.
pub(crate) fn chunk_end(position: u64) -> u64 {
    (position / u64::from(CHUNK_BYTES) + 1) * u64::from(CHUNK_BYTES)
}

/// One range of a file, being fetched or fetched.
pub(crate) struct Segment {
    pub(crate) start: u64,
    pub(crate) end: u64,
    state: RefCell<SegmentState>,
    grown: Notify,
    /// Its part of the read-ahead memory; a range that somebody waits for has none.
    _share: Option<Share>,
}

#[derive(Default)]
struct SegmentState {
    pieces: Vec<Piece>,
    filled: u64,
    error: Option<Errno>,
    is_stale: bool,
}

/// Why a segment cannot serve a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unserved {
    /// The bytes were changed while they were fetched.
    Stale,
    Failed(Errno),
}

impl Segment {
    pub(crate) fn new(range: Range<u64>, share: Option<Share>) -> Rc<Segment> {
        assert!(range.start < range.end && range.end <= chunk_end(range.start), "a segment lies inside one chunk");
        Rc::new(Segment {
            start: range.start,
            end: range.end,
            state: RefCell::default(),
            grown: Notify::new(),
            _share: share,
        })
    }

    /// Position up to which the bytes are there.
    pub(crate) fn position(&self) -> u64 {
        self.start + self.state.borrow().filled
    }

    pub(crate) fn push(&self, piece: Piece) {
        let mut state = self.state.borrow_mut();
        state.filled += piece.range.len() as u64;
        state.pieces.push(piece);
        drop(state);
        self.grown.notify_all();
    }

    pub(crate) fn fail(&self, errno: Errno) {
        self.state.borrow_mut().error = Some(errno);
        self.grown.notify_all();
    }

    /// What it holds must not be used any more.
    pub(crate) fn spoil(&self) {
        self.state.borrow_mut().is_stale = true;
        self.grown.notify_all();
    }

    pub(crate) fn is_stale(&self) -> bool {
        self.state.borrow().is_stale
    }

    /// Forgets what came so far: it is fetched again from the start.
    pub(crate) fn restart(&self) {
        let mut state = self.state.borrow_mut();
        state.pieces.clear();
        state.filled = 0;
    }

    /// Waits until the bytes up to `end` are there. With `even_stale`, changed bytes are good enough.
    pub(crate) async fn wait(&self, end: u64, even_stale: bool) -> Result<(), Unserved> {
        loop {
            {
                let state = self.state.borrow();
                if state.is_stale && !even_stale {
                    return Err(Unserved::Stale);
                }
                if self.start + state.filled >= end {
                    return Ok(());
                }
                if let Some(errno) = state.error {
                    return Err(Unserved::Failed(errno));
                }
            }
            self.grown.notified().await;
        }
    }

    /// Slices of `start..end`, which must be there.
    pub(crate) fn slices(&self, start: u64, end: u64, out: &mut Vec<Piece>) {
        let state = self.state.borrow();
        let mut at = self.start;
        for piece in &state.pieces {
            let piece_end = at + piece.range.len() as u64;
            if piece_end > start && at < end {
                let skip = usize::try_from(start.saturating_sub(at)).expect("inside a piece");
                let cut = usize::try_from(piece_end.saturating_sub(end)).expect("inside a piece");
                let range = piece.range.start + skip..piece.range.end - cut;
                out.push(Piece { buffer: piece.buffer.clone(), range });
            }
            at = piece_end;
        }
    }
}

impl Reader {
    /// A read of `start..end` begins: the ranges to fetch ahead now, and whether the reader is sequential.
    pub(crate) fn advance(&self, start: u64, end: u64, file_length: u64) -> (Vec<Range<u64>>, bool) {
        let mut state = self.state.borrow_mut();
        state.stream = state.stream.advance(start, end);
        state.is_in_use = true;
        let stream = state.stream;
        if stream.window == 0 {
            state.segments.clear();
            return (Vec::new(), false);
        }
        state.segments.retain(|segment| segment.end + BEHIND_BYTES > start);
        (stream.plan(state.horizon(stream.expected), file_length), true)
    }

    /// The fetched or coming segment with this position in it.
    pub(crate) fn find(&self, position: u64) -> Option<Rc<Segment>> {
        let state = self.state.borrow();
        state.segments.iter().find(|segment| segment.start <= position && position < segment.end).cloned()
    }

    pub(crate) fn add(&self, segment: Rc<Segment>) {
        let mut state = self.state.borrow_mut();
        let place = state.segments.partition_point(|other| other.start <= segment.start);
        state.segments.insert(place, segment);
    }

    pub(crate) fn remove(&self, segment: &Rc<Segment>) {
        self.state.borrow_mut().segments.retain(|other| !Rc::ptr_eq(other, segment));
    }

    /// The bytes of this range have changed.
    pub(crate) fn forget(&self, start: u64, end: u64) {
        self.state.borrow_mut().segments.retain(|segment| {
            let is_hit = segment.start < end && start < segment.end;
            if is_hit {
                segment.spoil();
            }
            !is_hit
        });
    }

    /// The reader is at the end: what lies before `position` is not kept for it.
    pub(crate) fn forget_before(&self, position: u64) {
        self.state.borrow_mut().segments.retain(|segment| segment.end > position);
    }

    /// Forgets everything unless somebody has read since the last sweep.
    pub(crate) fn sweep(&self) {
        let mut state = self.state.borrow_mut();
        if !std::mem::take(&mut state.is_in_use) {
            state.segments.clear();
        }
    }

    /// Memory is short: fetch less ahead.
    pub(crate) fn shrink(&self) {
        self.state.borrow_mut().stream.window /= 2;
    }
}

impl State {
    /// Up to where the segments reach without a gap, seen from `position`.
    fn horizon(&self, position: u64) -> u64 {
        let mut horizon = position;
        for segment in &self.segments {
            if segment.start <= horizon {
                horizon = horizon.max(segment.end);
            }
        }
        horizon
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;

    #[test]
    fn the_window_of_a_sequential_reader_doubles_up_to_its_bound() {
        let mut stream = Stream::default();
        let mut windows = Vec::new();
        for n in 0..10 {
            stream = stream.advance(n * 128 * KIB, (n + 1) * 128 * KIB);
            windows.push(stream.window / KIB);
        }
        assert_eq!(windows, [256, 512, 1024, 2048, 4096, 8192, 16384, 16384, 16384, 16384]);
    }

    #[test]
    fn a_jump_ends_read_ahead_and_small_disorder_does_not() {
        let stream = Stream { expected: 10 * MIB, window: MIB };
        assert_eq!(stream.advance(10 * MIB + 128 * KIB, 10 * MIB + 256 * KIB).window, MIB);
        assert_eq!(stream.advance(10 * MIB - 128 * KIB, 10 * MIB).expected, 10 * MIB);
        assert_eq!(stream.advance(50 * MIB, 50 * MIB + 4096), Stream { expected: 50 * MIB + 4096, window: 0 });
    }

    #[test]
    fn random_reads_fetch_nothing_ahead() {
        let stream = Stream::default().advance(7 * MIB, 7 * MIB + 4096);
        assert!(stream.plan(0, 100 * MIB).is_empty());
    }

    #[test]
    fn segments_never_cross_a_chunk_or_the_end_of_the_file() {
        let chunk = u64::from(CHUNK_BYTES);
        let stream = Stream { expected: chunk - MIB, window: 16 * MIB };
        let ranges = stream.plan(0, chunk + 3 * MIB);
        assert_eq!(ranges.first().unwrap().start, chunk - MIB);
        assert_eq!(ranges.last().unwrap().end, chunk + 3 * MIB);
        for pair in ranges.windows(2) {
            assert_eq!(pair[0].end, pair[1].start);
        }
        assert!(ranges.iter().all(|range| range.end <= chunk_end(range.start)));
    }

    #[test]
    fn what_is_on_its_way_is_not_asked_for_again() {
        let stream = Stream { expected: 0, window: 4 * MIB };
        assert!(stream.plan(4 * MIB, 100 * MIB).is_empty());
        assert!(stream.plan(3 * MIB, 100 * MIB).is_empty(), "half a window is still ahead");
        assert_eq!(stream.plan(MIB, 100 * MIB).first().unwrap().start, MIB);
    }

    #[test]
    fn slices_cut_pieces_where_the_read_begins_and_ends() {
        let segment = Segment::new(100..130, None);
        for byte in 0..3u8 {
            segment.push(Piece { buffer: Rc::new(vec![byte; 10]), range: 0..10 });
        }
        let mut out = Vec::new();
        segment.slices(105, 121, &mut out);
        let bytes: Vec<u8> = out.iter().flat_map(|piece| piece.as_slice().to_vec()).collect();
        assert_eq!(bytes, [vec![0; 5], vec![1; 10], vec![2; 1]].concat());
    }

    #[test]
    fn changed_bytes_leave_no_segment_behind() {
        let reader = Reader::default();
        reader.add(Segment::new(0..100, None));
        reader.add(Segment::new(100..200, None));
        let hit = reader.find(150).unwrap();
        reader.forget(150, 151);
        assert!(hit.is_stale());
        assert!(reader.find(150).is_none());
        assert!(reader.find(50).is_some());
    }
}
