//! Sessions of clients and what they hold open. Spec 30, 4.5 and 5.2.

use wire::{Inode, SessionId, Status, Time};

use crate::apply::borrowed;
use crate::change::{Change, Checksum, Disables, Umask};
use crate::namespace::Namespace;
use crate::session::{Session, SessionParams};

impl Namespace {
    /// A new session. Spec 30, 3.2.
    pub fn session_add(&mut self, now: impl Into<Time>, params: SessionParams) -> SessionId {
        let now = now.into();
        let change = Change::SessionAdd {
            checksum: Checksum(params.exports_checksum),
            root: params.root,
            flags: params.flags,
            umask: Umask(params.umask & 0o777),
            root_uid: params.root_uid,
            root_gid: params.root_gid,
            map_all_uid: params.map_all_uid,
            map_all_gid: params.map_all_gid,
            goal_min: params.goal_min,
            goal_max: params.goal_max,
            trash_min: params.trash_time_min_seconds,
            trash_max: params.trash_time_max_seconds,
            disables: Disables(params.disables),
            peer: params.peer_ip,
            info: borrowed(&params.info),
        };
        let outcome = self.commit(now, &change).expect("any parameters make a session");
        SessionId(outcome.first() as u32)
    }

    /// Gives a session new parameters; it keeps its id and open files. Errors: `BADSESSIONID`.
    pub fn session_change(
        &mut self,
        now: impl Into<Time>,
        session: SessionId,
        params: SessionParams,
    ) -> Result<(), Status> {
        let now = now.into();
        let change = Change::SessionChange {
            session,
            checksum: Checksum(params.exports_checksum),
            root: params.root,
            flags: params.flags,
            umask: Umask(params.umask & 0o777),
            root_uid: params.root_uid,
            root_gid: params.root_gid,
            map_all_uid: params.map_all_uid,
            map_all_gid: params.map_all_gid,
            goal_min: params.goal_min,
            goal_max: params.goal_max,
            trash_min: params.trash_time_min_seconds,
            trash_max: params.trash_time_max_seconds,
            disables: Disables(params.disables),
            peer: params.peer_ip,
            info: borrowed(&params.info),
        };
        self.commit(now, &change).map(drop)
    }

    /// A client came back to its session. Errors: `BADSESSIONID`.
    pub fn session_connected(&mut self, now: impl Into<Time>, session: SessionId) -> Result<(), Status> {
        let now = now.into();
        let known = self.state.sessions.get(&session).ok_or(Status::BADSESSIONID)?;
        if known.disconnected != 0 {
            self.commit(now, &Change::SessionConnect { session })?;
        }
        Ok(())
    }

    /// The last connection of a session went. Errors: `BADSESSIONID`.
    pub fn session_disconnected(&mut self, now: impl Into<Time>, session: SessionId) -> Result<(), Status> {
        let now = now.into();
        self.commit(now, &Change::SessionDisconnect { session }).map(drop)
    }

    /// Ends a session: its files are closed, its locks dropped. Errors: `BADSESSIONID`.
    pub fn session_remove(&mut self, now: impl Into<Time>, session: SessionId) -> Result<(), Status> {
        let now = now.into();
        let open: Vec<u32> = self.state.open_files(session).collect();
        self.commit(now, &Change::SessionDelete { session })?;
        for inode in open {
            self.locks_released(now, session, inode);
        }
        Ok(())
    }

    pub fn session(&self, session: SessionId) -> Option<&Session> {
        self.state.sessions.get(&session)
    }

    pub fn sessions(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.state.sessions.iter().map(|(id, session)| (*id, session))
    }

    /// Sessions that nobody is connected to for too long. Those that lost their connections with the last master have
    /// no time of disconnection: the caller disconnects them at its start. Spec 30, 4.5 "Removal".
    pub fn expired_sessions(&self, now: u32, connected: &dyn Fn(SessionId) -> bool) -> Vec<SessionId> {
        let sustain = u64::from(self.policy.session_sustain_seconds);
        let expired =
            |session: &Session| session.disconnected != 0 && u64::from(session.disconnected) + sustain < u64::from(now);
        self.sessions().filter(|(id, session)| expired(session) && !connected(*id)).map(|(id, _)| id).collect()
    }

    /// The complete list of what a client wants kept: the rest is closed, what is new is open. Spec 30, 5.2.
    pub fn sustained_inodes(&mut self, now: impl Into<Time>, session: SessionId, list: &[Inode]) {
        let now = now.into();
        if !self.state.sessions.contains_key(&session) {
            return;
        }
        let mut wanted: Vec<u32> = list.iter().map(|inode| inode.0).filter(|inode| *inode != 0).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let closed: Vec<u32> =
            self.state.open_files(session).filter(|inode| wanted.binary_search(inode).is_err()).collect();
        for inode in closed {
            self.release(now, session, inode);
        }
        for inode in wanted {
            self.acquire(now, session, inode).expect("the session exists");
        }
    }

    /// Notes that a session has a file open.
    pub(crate) fn acquire(&mut self, now: Time, session: SessionId, inode: u32) -> Result<(), Status> {
        if !self.state.is_open_by(session, inode) {
            self.commit(now, &Change::Acquire { session, inode: Inode(inode) })?;
        }
        Ok(())
    }

    fn release(&mut self, now: Time, session: SessionId, inode: u32) {
        self.commit(now, &Change::Release { session, inode: Inode(inode) }).expect("it is open");
        self.locks_released(now, session, inode);
    }

    /// Sessions that have a file open: who is told of its changes. Spec 30, 6.
    pub fn openers(&self, inode: Inode) -> impl Iterator<Item = SessionId> + '_ {
        self.state.openers(inode.0)
    }

    pub fn open_files(&self, session: SessionId) -> impl Iterator<Item = Inode> + '_ {
        self.state.open_files(session).map(Inode)
    }

    pub fn all_open_files(&self) -> impl Iterator<Item = (SessionId, Inode)> + '_ {
        self.state.all_open_files().map(|(session, inode)| (session, Inode(inode)))
    }
}
