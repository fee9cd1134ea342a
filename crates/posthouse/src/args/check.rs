//! The flags of `posthouse check`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use http::Uri;

use super::values;

const EXAMPLES: &str = "Examples:
  posthouse check --pre                      before the installation
  posthouse check                            after it, or at any time
  posthouse check --url http://web.shop/     and a request to that Service through each node";

/// The flags of `posthouse check`; none has an environment variable, since a person types them. (KUBECONFIG and NO_COLOR mean
/// what they mean everywhere.)
#[derive(Args, Debug)]
#[command(max_term_width = 110, after_help = EXAMPLES)]
#[command(after_long_help = format!("{EXAMPLES}\n\n{}", crate::check::overview()))]
pub(crate) struct CheckArgs {
    /// Namespace of the proxies
    #[arg(long, value_name = "NAMESPACE", default_value = "posthouse", value_parser = values::dns_label)]
    pub(crate) namespace: String,

    /// Check only what can be checked before the installation
    ///
    /// Without it that is done when the namespace has no DaemonSet 'posthouse'.
    #[arg(long)]
    pub(crate) pre: bool,

    /// Check only these nodes
    ///
    /// Separated by commas; the flag may be repeated.
    ///
    /// [default: every Linux node]
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = values::node_name)]
    pub(crate) node: Vec<String>,

    /// A GET request that is sent through each node: the URL of a Service, by http
    ///
    /// It is sent up to 24 times a node, until each of its links was tried: take a Service with pods on every node. With and
    /// without it each proxy is asked for a name that cannot exist, which reaches no application, and must say so itself.
    ///
    /// [default: none]
    #[arg(long, value_name = "URL", value_parser = values::probe_url)]
    pub(crate) url: Option<Uri>,

    /// Exit code 1 also when something should be looked at, or could not be
    #[arg(long)]
    pub(crate) strict: bool,

    /// How the result is written
    #[arg(long, short, value_name = "FORMAT", default_value = "text")]
    pub(crate) output: OutputFormat,

    /// The longest time for one question to the API server or to a node
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = values::patience)]
    pub(crate) timeout: Duration,

    /// Context of the kubeconfig
    ///
    /// [default: its current context]
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,

    /// The kubeconfig
    ///
    /// [default: KUBECONFIG, ~/.kube/config, or the service account of the pod that this runs in]
    #[arg(long, value_name = "PATH")]
    pub(crate) kubeconfig: Option<PathBuf>,
}

/// `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    Text,
    Json,
}
