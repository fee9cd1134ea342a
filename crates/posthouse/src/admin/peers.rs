//! `/peers`: the proxies of the other nodes as the directory knows them, joined with the links that the data plane has.

use std::collections::HashMap;
use std::net::SocketAddr;

use http::{Response, StatusCode};
use posthouse_model::Directory;
use posthouse_proxy::LinkStatus;
use serde::Serialize;

use super::json;
use crate::server::Body;

#[derive(Serialize)]
struct Peers<'a> {
    directory_version: u64,
    peers: Vec<PeerView<'a>>,
}

#[derive(Serialize)]
struct PeerView<'a> {
    node: &'a str,
    address: SocketAddr,
    ready: bool,
    /// This proxy itself: no link leads there.
    this_node: bool,
    /// Absent before the first request to that node.
    link: Option<LinkView>,
}

#[derive(Serialize)]
struct LinkView {
    connections: u64,
    streams: u64,
    opened: u64,
    /// Ever, as `opened` is.
    failures: u64,
    /// Of the last attempt; absent once one has succeeded.
    last_error: Option<String>,
}

/// `/peers`.
pub(super) fn list(directory: &Directory, links: Vec<LinkStatus>, this_node: &str) -> Response<Body> {
    let mut links: HashMap<String, LinkStatus> = links.into_iter().map(|link| (link.node.clone(), link)).collect();
    let mut peers: Vec<PeerView<'_>> = directory
        .peers()
        .map(|peer| PeerView {
            node: &peer.node,
            address: peer.address,
            ready: peer.ready,
            this_node: *peer.node == *this_node,
            link: links.remove(&*peer.node).map(link_view),
        })
        .collect();
    peers.sort_unstable_by_key(|peer| peer.node);
    json(StatusCode::OK, &Peers { directory_version: directory.version, peers })
}

fn link_view(link: LinkStatus) -> LinkView {
    let LinkStatus { node: _, connections, streams, opened, failures, last_error } = link;
    LinkView { connections, streams, opened, failures, last_error }
}
