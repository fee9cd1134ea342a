//! Which addresses may be dialled at all. We are a forward proxy on the host network, so an address that a user could
//! write into an EndpointSlice may reach what the pod itself never could: the node's loopback, the cloud's metadata
//! service, another node's kubelet. [`check`] is asked when an endpoint enters the directory and again at each dial.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use crate::directory::{Directory, Pod};

/// Why an address must not be dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// 127.0.0.0/8 or ::1, and no Node's podCIDR says that pods live there.
    Loopback,
    /// 169.254.0.0/16 or fe80::/10.
    LinkLocal,
    /// A cloud's metadata service outside of the link-local range.
    Metadata,
    /// 224.0.0.0/4, ff00::/8 or 255.255.255.255.
    Multicast,
    /// 0.0.0.0/8 or ::.
    Unspecified,
    /// An IPv4 address written as IPv6 (mapped, compatible, NAT64, 6to4, Teredo): never what a pod has, always a
    /// way around a check.
    Embedded,
    /// 240.0.0.0/4 and other ranges that are no unicast address.
    Reserved,
    /// A node's own address, and not that of a host-network pod that is known there.
    Node,
    /// A port of ours or of the kubelet on a node's address.
    NodePort,
    /// An address of the cluster's own (a Service's, a pod's, a pod range's) where one outside is wanted.
    Cluster,
    /// A private address where one outside is wanted, in a cluster whose pod ranges are not all known.
    PerhapsPod,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "a loopback address outside every Node's podCIDR",
            Self::LinkLocal => "a link-local address",
            Self::Metadata => "a cloud metadata address",
            Self::Multicast => "a multicast or broadcast address",
            Self::Unspecified => "an unspecified address",
            Self::Embedded => "an IPv4 address in an IPv6 spelling",
            Self::Reserved => "a reserved address",
            Self::Node => "a node's own address",
            Self::NodePort => "a port of the node's own services",
            Self::Cluster => "an address of the cluster's own",
            Self::PerhapsPod => {
                "a private address and may be a pod's, since the Nodes' podCIDRs do not tell all pods' addresses; if it is none, list its \
                 network in --egress-allow, too"
            }
        })
    }
}

/// Ports that no request may reach on a node's address, host-network pod or not: ours (outbound, link, admin, metrics)
/// and the node's: kubelet 10250, 10255, 10248, kube-proxy 10249 and 10256, etcd 2379 to 2381.
/// Source: Kubernetes "Ports and Protocols" reference.
pub const NODE_PORTS: [u16; 12] = [4140, 4141, 9990, 9991, 10248, 10249, 10250, 10255, 10256, 2379, 2380, 2381];

/// Metadata services with addresses of their own: Alibaba Cloud, Oracle Cloud, Azure's platform address, Google Cloud,
/// Scaleway, Linode. (169.254.169.254 and its kin are link-local.)
const METADATA: [IpAddr; 8] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0100, 0, 0, 0, 0, 0x0100, 0x0200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x00c1, 0, 0, 0, 0, 0xa9fe, 0xa9fe)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0042, 0, 0, 0, 0, 0, 0x0042)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 0x0001)),
];

/// The block of AWS's own services over IPv6: metadata (::254), EKS pod identity (::23), DNS and time.
const AWS: [u16; 2] = [0xfd00, 0x0ec2];

/// Says whether an endpoint's address may be dialled. `host_network` is true when the endpoint is known to be a
/// host-network pod on the node that owns the address.
///
/// # Errors
/// The reason for the refusal.
pub fn check(ip: IpAddr, port: u16, host_network: bool, directory: &Directory) -> Result<(), Refusal> {
    // A node's own address comes first: on one machine (demo, tests) nodes are loopback addresses, too.
    if directory.node_by_ip(ip).is_some() {
        if !host_network {
            return Err(Refusal::Node);
        }
        if NODE_PORTS.contains(&port) {
            return Err(Refusal::NodePort);
        }
        return Ok(());
    }
    match check_range(ip) {
        Err(Refusal::Loopback) if in_pod_cidr(ip, directory) => Ok(()),
        verdict => verdict,
    }
}

/// The Service through which pods reach the API server; only the server itself writes its endpoints.
const API_SERVER: &str = "default/kubernetes";

/// Says whether an address may be dialled as one outside of the cluster: what [`check`] refuses and what is the cluster's own may
/// not. Endpoints alone make no address the cluster's: anyone may write a slice, and could close others' way out by it.
///
/// # Errors
/// The reason for the refusal.
pub fn check_outside(address: SocketAddr, directory: &Directory) -> Result<(), Refusal> {
    let ip = address.ip();
    check(ip, address.port(), false, directory)?;
    let of_cluster = directory.service_by_cluster_ip(ip).is_some()
        || directory.pod_by_ip(ip).is_some()
        || directory.endpoints_at(address).iter().any(|(key, _)| **key == *API_SERVER)
        || in_pod_cidr(ip, directory);
    if of_cluster { Err(Refusal::Cluster) } else { Ok(()) }
}

/// Whether `ip` may be a pod's of another node for all that is known: its address is private, and the Nodes' podCIDRs are not where
/// the pods live, because they are not there (the network plug-ins of clouds) or the plug-in does not go by them (Cilium's and
/// Calico's own ranges), which a pod of this node shows.
#[must_use]
pub fn may_be_pod(ip: IpAddr, directory: &Directory) -> bool {
    if !is_private(ip) {
        return false;
    }
    let of_family = |cidr: &IpNet| cidr.addr().is_ipv4() == ip.is_ipv4();
    let all_say =
        directory.nodes().next().is_some() && directory.nodes().all(|node| node.pod_cidrs.iter().any(of_family));
    let elsewhere = |pod: &Pod| {
        let ranges = directory.node(&pod.node).map_or(&[][..], |node| &node.pod_cidrs);
        let outside = |address: &&IpAddr| !ranges.iter().any(|cidr| cidr.contains(*address));
        let mut addresses = pod.addresses.iter().filter(|address| address.is_ipv4() == ip.is_ipv4());
        !pod.host_network && addresses.any(|address| outside(&address))
    };
    !all_say || directory.pods().any(|pod| elsewhere(pod))
}

/// Whether all of a network is private.
#[must_use]
pub fn is_private_network(net: &IpNet) -> bool {
    is_private(net.network()) && is_private(net.broadcast())
}

/// RFC 1918, RFC 6598 (carriers' range, which clusters use for pods, too) and RFC 4193.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_private() || v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64,
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

/// Whether `ip` lies in some node's podCIDR.
fn in_pod_cidr(ip: IpAddr, directory: &Directory) -> bool {
    // Only asked for loopback addresses (demos and tests) and once for each address outside, so a walk over all nodes will do.
    directory.nodes().any(|node| node.pod_cidrs.iter().any(|cidr| cidr.contains(&ip)))
}

/// The part of [`check`] that needs no directory.
///
/// # Errors
/// The reason for the refusal.
pub fn check_range(ip: IpAddr) -> Result<(), Refusal> {
    if METADATA.contains(&ip) {
        return Err(Refusal::Metadata);
    }
    match ip {
        IpAddr::V4(v4) => check_v4(v4),
        IpAddr::V6(v6) => check_v6(v6),
    }
}

fn check_v4(ip: Ipv4Addr) -> Result<(), Refusal> {
    let [a, ..] = ip.octets();
    if ip.is_loopback() {
        Err(Refusal::Loopback)
    } else if a == 0 {
        Err(Refusal::Unspecified)
    } else if ip.is_link_local() {
        Err(Refusal::LinkLocal)
    } else if ip.is_multicast() || ip.is_broadcast() {
        Err(Refusal::Multicast)
    } else if a >= 240 {
        Err(Refusal::Reserved)
    } else {
        Ok(())
    }
}

fn check_v6(ip: Ipv6Addr) -> Result<(), Refusal> {
    let s = ip.segments();
    if ip.is_loopback() {
        Err(Refusal::Loopback)
    } else if ip.is_unspecified() {
        Err(Refusal::Unspecified)
    } else if ip.is_multicast() {
        Err(Refusal::Multicast)
    } else if s[..2] == AWS {
        Err(Refusal::Metadata)
    } else if s[0] & 0xffc0 == 0xfe80 || s[0] & 0xffc0 == 0xfec0 {
        Err(Refusal::LinkLocal)
    } else if s[..5] == [0; 5] && (s[5] == 0xffff || s[5] == 0)
        || s[..4] == [0; 4] && s[4] == 0xffff && s[5] == 0
        || s[0] == 0x0064 && s[1] == 0xff9b
        || s[0] == 0x2002
        || s[0] == 0x2001 && s[1] == 0
    {
        // ::ffff:a.b.c.d, ::a.b.c.d, ::ffff:0:a.b.c.d (SIIT), 64:ff9b::/32 (NAT64, local NAT64), 6to4, Teredo.
        Err(Refusal::Embedded)
    } else if s[0] == 0x0100 && s[1..4] == [0; 3] || s[4] == 0 && s[5] == 0x5efe || s[4] == 0x0200 && s[5] == 0x5efe {
        // 100::/64 discards; ::5efe:a.b.c.d is ISATAP.
        Err(Refusal::Reserved)
    } else {
        Ok(())
    }
}
