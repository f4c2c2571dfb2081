//! A netlink connection into one namespace, and the three ways it is used: ask for a list, change
//! one thing, change many.
//!
//! A netlink socket belongs for good to the namespace of the thread that made it, hence the thread
//! in [`Rt::inside`]; the connection itself may run anywhere. rtnetlink's request builders are not
//! used beyond this: half of what is carried has no setter there, and its releases break often.

use super::error::{Attempt, NetworkError};
use super::netns::NsFd;
use futures_util::StreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use std::io;

/// A dump that other changes interrupt is asked for again this often.
const DUMP_TRIES: usize = 8;

/// A connection; it closes when dropped.
pub(super) struct Rt(Handle);

impl Rt {
    /// Into the namespace of the calling thread.
    fn here() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// Into the host's namespace.
    pub(super) fn host() -> Result<Self, NetworkError> {
        Self::here().attempt("open", "a netlink socket")
    }

    /// Into another namespace.
    pub(super) async fn inside(ns: &NsFd) -> Result<Self, NetworkError> {
        let runtime = tokio::runtime::Handle::current();
        ns.inside(move || {
            let _guard = runtime.enter();
            Self::here()
        })
        .await
        .attempt("open", "a netlink socket in the container's namespace")
    }

    /// Everything of one sort.
    pub(super) async fn dump<T>(
        &mut self,
        question: RouteNetlinkMessage,
        mut pick: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        for _ in 0..DUMP_TRIES {
            let mut message = NetlinkMessage::from(question.clone());
            message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            let mut answers = self.0.request(message).map_err(io::Error::other)?;
            let (mut all, mut interrupted) = (Vec::new(), false);
            while let Some(answer) = answers.next().await {
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(m) => all.extend(pick(m)),
                    NetlinkPayload::Error(e) if e.code.is_some() => return Err(e.to_io()),
                    _ => {}
                }
            }
            if !interrupted {
                return Ok(all);
            }
        }
        Err(io::Error::other("the list keeps changing while it is read"))
    }

    /// One thing by name or index; the kernel answers with it.
    pub(super) async fn get(
        &mut self,
        question: RouteNetlinkMessage,
    ) -> io::Result<Option<RouteNetlinkMessage>> {
        let mut message = NetlinkMessage::from(question);
        message.header.flags = NLM_F_REQUEST;
        let mut answers = self.0.request(message).map_err(io::Error::other)?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(m) => return Ok(Some(m)),
                NetlinkPayload::Error(e) if e.code.is_some() => return Err(e.to_io()),
                _ => {}
            }
        }
        Ok(None)
    }

    /// One change, acknowledged by the kernel. Flags as `NLM_F_CREATE`.
    pub(super) async fn change(&mut self, change: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.begin(change, flags)?.await
    }

    /// Sends a change at once; the future waits for the acknowledgement. Several may be under way.
    pub(super) fn begin(
        &mut self,
        change: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<impl Future<Output = io::Result<()>> + use<>> {
        let mut message = NetlinkMessage::from(change);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut answers = self.0.request(message).map_err(io::Error::other)?;
        Ok(async move {
            while let Some(answer) = answers.next().await {
                if let NetlinkPayload::Error(e) = answer.payload
                    && e.code.is_some()
                {
                    return Err(e.to_io());
                }
            }
            Ok(())
        })
    }
}
