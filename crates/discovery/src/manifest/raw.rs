//! The shapes of manifests, as far as we read them. One struct covers all four kinds: their fields do not contradict each
//! other, and `kind` may come last in a document. Everything is optional; null and absent are the same, as Go writes
//! empty lists as null.

use serde::{Deserialize, Serialize};

pub(crate) use secret::{RawData, Value};

mod secret;

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RawObject {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) api_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<String>,
    #[serde(default)]
    pub(crate) metadata: RawMeta,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) spec: Option<RawSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<RawStatus>,
    // EndpointSlice
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) address_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) endpoints: Option<Vec<RawEndpoint>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ports: Option<Vec<RawPort>>,
    // Secret and ConfigMap; never written anywhere.
    #[serde(rename = "type", skip_serializing)]
    pub(crate) secret_type: Option<String>,
    #[serde(skip_serializing)]
    pub(crate) data: Option<RawData>,
    #[serde(skip_serializing)]
    pub(crate) string_data: Option<RawData>,
    // List
    #[serde(skip_serializing)]
    pub(crate) items: Option<Vec<RawObject>>,
}

/// What names an object; parsed where the rest does not fit.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RawHead {
    pub(crate) api_version: Option<String>,
    pub(crate) kind: Option<String>,
    #[serde(default)]
    pub(crate) metadata: RawMeta,
}

/// A YAML list of which at least one item does not fit.
#[derive(Debug, Deserialize)]
pub(crate) struct RawItems {
    pub(crate) kind: Option<String>,
    pub(crate) items: Option<Vec<serde_norway::Value>>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RawMeta {
    pub(crate) name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) labels: Option<RawLabels>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<RawAnnotations>,
}

/// The annotations that matter; others may be of any type.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct RawAnnotations {
    #[serde(rename = "posthouse.io/tls-secret", skip_serializing_if = "Option::is_none")]
    pub(crate) tls_secret: Option<String>,
    #[serde(rename = "posthouse.io/tls-ca-configmap", skip_serializing_if = "Option::is_none")]
    pub(crate) tls_ca_config_map: Option<String>,
    #[serde(rename = "posthouse.io/backend-tls", skip_serializing_if = "Option::is_none")]
    pub(crate) backend_tls: Option<String>,
    #[serde(rename = "posthouse.io/backend-tls-ca", skip_serializing_if = "Option::is_none")]
    pub(crate) backend_tls_ca: Option<String>,
    #[serde(rename = "posthouse.io/backend-tls-hostname", skip_serializing_if = "Option::is_none")]
    pub(crate) backend_tls_hostname: Option<String>,
}

/// The one label that matters; others may be of any type.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct RawLabels {
    #[serde(rename = "kubernetes.io/service-name", skip_serializing_if = "Option::is_none")]
    pub(crate) service_name: Option<String>,
}

/// The specs of Service, Pod and Node in one.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RawSpec {
    // Service
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<String>,
    #[serde(rename = "clusterIP", skip_serializing_if = "Option::is_none")]
    pub(crate) cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs", skip_serializing_if = "Option::is_none")]
    pub(crate) cluster_ips: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) external_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ports: Option<Vec<RawPort>>,
    // Pod
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) host_network: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) service_account_name: Option<String>,
    // Node
    #[serde(rename = "podCIDR", skip_serializing_if = "Option::is_none")]
    pub(crate) pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs", skip_serializing_if = "Option::is_none")]
    pub(crate) pod_cidrs: Option<Vec<String>>,
}

/// The statuses of Pod and Node in one.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RawStatus {
    // Pod
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) phase: Option<String>,
    #[serde(rename = "podIP", skip_serializing_if = "Option::is_none")]
    pub(crate) pod_ip: Option<String>,
    #[serde(rename = "podIPs", skip_serializing_if = "Option::is_none")]
    pub(crate) pod_ips: Option<Vec<RawPodIp>>,
    // Node
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) addresses: Option<Vec<RawNodeAddress>>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct RawPodIp {
    pub(crate) ip: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct RawNodeAddress {
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) address: Option<String>,
}

/// A port of a Service or of an EndpointSlice.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RawPort {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) protocol: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) app_protocol: Option<String>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RawEndpoint {
    pub(crate) addresses: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) conditions: Option<RawConditions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hostname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) zone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) target_ref: Option<RawTargetRef>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct RawConditions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ready: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) serving: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) terminating: Option<bool>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct RawTargetRef {
    pub(crate) kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) uid: Option<String>,
}
