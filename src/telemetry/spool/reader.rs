//! A reader's way through the segments of a lane, and its cursor.

use std::io;
use std::sync::Arc;

use super::cursor::Cursor;
use super::disk::Folder;
use super::frame::{Frame, Kind};
use super::segments::{Segment, Segments};
use super::walk::Walk;
use super::{Batch, BatchLimit, Chunk};

pub struct Walker {
    pub cursor: Cursor,
    folder: Arc<dyn Folder>,
    place: Option<Place>,
    /// A frame that did not fit into the last batch.
    pending: Option<Frame>,
    /// The number of the record that comes next.
    at: u64,
}

struct Place {
    segment: Arc<Segment>,
    walk: Walk,
}

impl Walker {
    pub fn new(folder: Arc<dyn Folder>, cursor: Cursor) -> Self {
        Self { cursor, folder, place: None, pending: None, at: 0 }
    }

    /// The records from number `from` on, at most as many as `limit` says but at least one frame, and how many could not be read.
    /// `segments` lets look at the lane, and must not be held long.
    pub fn take(
        &mut self,
        from: u64,
        limit: BatchLimit,
        segments: impl Fn(&mut dyn FnMut(&Segments)),
    ) -> io::Result<(Batch, u64)> {
        if self.at != from {
            (self.place, self.pending, self.at) = (None, None, from);
        }
        let mut batch = Batch { chunks: Vec::new(), end: from, appended: None };
        let (mut lost, mut records, mut bytes) = (0, 0, 0);
        while records < limit.records {
            let Some(frame) = self.frame(&segments, &mut lost)? else { break };
            let end = frame.first + u64::from(frame.records);
            if end <= self.at {
                continue;
            }
            if !batch.chunks.is_empty() && bytes + frame.body.len() > limit.bytes {
                self.pending = Some(frame);
                break;
            }
            lost += frame.first.saturating_sub(self.at);
            let skip = u32::try_from(self.at.saturating_sub(frame.first)).unwrap_or(u32::MAX);
            records += (frame.records - skip) as usize;
            bytes += frame.body.len();
            batch.appended.get_or_insert(frame.appended);
            (self.at, batch.end) = (end, end);
            batch.chunks.push(Chunk { first: frame.first, records: frame.records, skip, body: frame.body });
        }
        batch.end = self.at;
        Ok((batch, lost))
    }

    /// The next frame of records.
    fn frame(&mut self, segments: &impl Fn(&mut dyn FnMut(&Segments)), lost: &mut u64) -> io::Result<Option<Frame>> {
        if let Some(frame) = self.pending.take() {
            return Ok(Some(frame));
        }
        loop {
            if self.place.as_ref().is_none_or(|place| place.segment.is_gone()) && !self.enter(segments)? {
                return Ok(None);
            }
            let Some(place) = &mut self.place else { return Ok(None) };
            // Looked at before the end of the segment, so that what is appended meanwhile is not passed over.
            let (mut after, mut next) = (None, 0);
            segments(&mut |segments| {
                after = segments.after(&place.segment);
                next = segments.next;
            });
            if let Some(frame) = place.walk.next(place.segment.committed(), self.at)? {
                if frame.kind == Kind::Records && frame.records > 0 {
                    return Ok(Some(frame));
                }
                continue;
            }
            let end = after.as_ref().map_or(next, |after| after.base);
            // The last frames of the segment, if they could not be read.
            *lost += end.saturating_sub(self.at);
            self.at = self.at.max(end);
            let Some(after) = after else { return Ok(None) };
            self.open(after)?;
        }
    }

    /// Goes to the segment that holds the next record.
    fn enter(&mut self, segments: &impl Fn(&mut dyn FnMut(&Segments))) -> io::Result<bool> {
        self.place = None;
        let (mut found, mut base) = (None, 0);
        segments(&mut |segments| (found, base) = (segments.segment_of(self.at), segments.base()));
        // What a bound has dropped was counted then.
        self.at = self.at.max(base);
        let Some(segment) = found else { return Ok(false) };
        self.open(segment)?;
        Ok(self.place.is_some())
    }

    fn open(&mut self, segment: Arc<Segment>) -> io::Result<()> {
        self.place = match self.folder.open(&segment.name(), false) {
            Ok(file) => Some(Place { segment, walk: Walk::new(file) }),
            // It was unlinked meanwhile; the state says where to go on.
            Err(error) if error.kind() == io::ErrorKind::NotFound && segment.is_gone() => None,
            Err(error) => return Err(error),
        };
        Ok(())
    }
}
