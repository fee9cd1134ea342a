//! The flags of `posthouse controller`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::{Args, ValueEnum};
use posthouse_controller::{Ca, Settings};
use posthouse_identity::TrustDomain;

use super::{LogFormat, Surroundings, namespace_or_own, values};

/// The flags of `posthouse controller`.
#[derive(Args, Debug)]
#[command(max_term_width = 110)]
pub(crate) struct ControllerArgs {
    /// Namespace in which the proxies run, and in which the authority is kept
    ///
    /// [default: this pod's own namespace; 'posthouse' outside of a pod]
    #[arg(long, env = "POSTHOUSE_NAMESPACE", value_name = "NAMESPACE", value_parser = values::dns_label)]
    namespace: Option<String>,

    /// Name of this replica, which no other has
    ///
    /// [default: the variable HOSTNAME, which is a pod's name]
    #[arg(long, env = "POSTHOUSE_POD_NAME", value_name = "NAME")]
    pod_name: Option<String>,

    /// Service account of the proxies: certificates are for its pods alone
    #[arg(long, env = "POSTHOUSE_PROXY_ACCOUNT", value_name = "NAME", default_value = "posthouse")]
    #[arg(value_parser = values::node_name)]
    proxy_account: String,

    /// The first part of the names in the nodes' certificates: spiffe://TRUST-DOMAIN/node/NODE-NAME
    #[arg(long, env = "POSTHOUSE_TRUST_DOMAIN", value_name = "NAME", default_value = "cluster.local")]
    trust_domain: String,

    /// Make the authority unless the Secret posthouse-ca is there, or wait for somebody else to make it
    ///
    /// A Secret that somebody else made (type kubernetes.io/tls with ca.crt, as cert-manager's) is used and followed in both
    /// cases, and never written.
    #[arg(long, env = "POSTHOUSE_CA", value_name = "MODE", default_value = "create")]
    ca: CaMode,

    /// How long an authority that is made here is valid; it is replaced in the last third of that
    #[arg(long, env = "POSTHOUSE_CA_LIFETIME", value_name = "DURATION", default_value = "8760h")]
    #[arg(value_parser = values::patience)]
    ca_lifetime: Duration,

    /// How long a node's certificate is valid; it is renewed at half of that
    #[arg(long, env = "POSTHOUSE_CERTIFICATE_LIFETIME", value_name = "DURATION", default_value = "24h")]
    #[arg(value_parser = values::patience)]
    certificate_lifetime: Duration,

    /// Where Prometheus and the kubelet ask: /metrics, /livez, /readyz
    ///
    /// [default: port 9992 of the address in POSTHOUSE_POD_IP; of all IPv4 addresses without it]
    #[arg(long, env = "POSTHOUSE_METRICS_LISTEN", value_name = "IP:PORT", value_parser = values::listen)]
    metrics_listen: Option<SocketAddr>,

    /// What is logged to stderr: error, warn, info, debug or trace, also by module as in 'info,posthouse_controller=debug'
    #[arg(long, env = "POSTHOUSE_LOG", value_name = "LEVEL", default_value = "info", value_parser = values::log_filter)]
    log: String,

    /// One line of text or one JSON object for each log event
    #[arg(long, env = "POSTHOUSE_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
}

/// `--ca`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CaMode {
    Create,
    Adopt,
}

/// What the controller was told, checked and complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ControllerConfig {
    pub(crate) namespace: String,
    pub(crate) pod_name: String,
    pub(crate) proxy_account: String,
    pub(crate) trust_domain: String,
    pub(crate) ca: Ca,
    pub(crate) ca_lifetime: Duration,
    pub(crate) certificate_lifetime: Duration,
    pub(crate) metrics_listen: SocketAddr,
    pub(crate) log: String,
    pub(crate) log_format: LogFormat,
}

impl ControllerArgs {
    /// Fills in what is not given and checks what one flag alone cannot show to be wrong.
    ///
    /// # Errors
    /// One line that says which flag is wrong and what would be right.
    pub(crate) fn into_config(self, around: &Surroundings) -> Result<ControllerConfig, String> {
        let Self {
            namespace,
            pod_name,
            proxy_account,
            trust_domain,
            ca,
            ca_lifetime,
            certificate_lifetime,
            metrics_listen,
            log,
            log_format,
        } = self;
        let pod_name = pod_name.filter(|name| !name.is_empty()).or_else(|| around.text("HOSTNAME")).ok_or(
            "--pod-name is missing: give this replica's name there or in POSTHOUSE_POD_NAME; no other may have the same",
        )?;
        TrustDomain::parse(&trust_domain).map_err(|why| format!("--trust-domain: {why}"))?;
        let least = certificate_lifetime.saturating_mul(Settings::LIVES);
        if ca_lifetime < least {
            return Err(format!(
                "--ca-lifetime {ca_lifetime:?}: at least {} times --certificate-lifetime, {least:?}, so that there is time to replace it",
                Settings::LIVES
            ));
        }
        let metrics_listen = match (metrics_listen, around.text("POSTHOUSE_POD_IP")) {
            (Some(address), _) => address,
            (None, Some(text)) => {
                let ip: IpAddr = text.parse().map_err(|_| format!("POSTHOUSE_POD_IP: '{text}' is no IP address"))?;
                SocketAddr::new(ip, 9992)
            }
            (None, None) => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 9992),
        };
        Ok(ControllerConfig {
            namespace: namespace_or_own(namespace, around),
            pod_name,
            proxy_account,
            trust_domain,
            ca: match ca {
                CaMode::Create => Ca::Create,
                CaMode::Adopt => Ca::Adopt,
            },
            ca_lifetime,
            certificate_lifetime,
            metrics_listen,
            log,
            log_format,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::path::PathBuf;

    use clap::Parser;

    use super::super::{Cli, Command};
    use super::*;

    fn config(args: &[&str], env: fn(&str) -> Option<OsString>) -> Result<ControllerConfig, String> {
        let argv = ["posthouse", "controller"].iter().chain(args);
        let around = Surroundings { env, namespace_file: PathBuf::from("/does/not/exist"), cores: 1 };
        match Cli::try_parse_from(argv).map_err(|error| error.to_string())?.command {
            Command::Controller(flags) => flags.into_config(&around),
            _ => Err("another command".to_owned()),
        }
    }

    fn host(name: &str) -> Option<OsString> {
        (name == "HOSTNAME").then(|| "posthouse-controller-1".into())
    }

    #[test]
    fn a_pods_surroundings_are_enough() {
        let config = config(&[], host).unwrap();
        assert_eq!(config.pod_name, "posthouse-controller-1");
        assert_eq!(config.namespace, "posthouse");
        assert_eq!(config.metrics_listen.to_string(), "0.0.0.0:9992");
        assert_eq!(config.ca, Ca::Create);
        assert_eq!(config.ca_lifetime, Duration::from_secs(365 * 86_400));
        assert_eq!(config.certificate_lifetime, Duration::from_secs(86_400));
    }

    #[test]
    fn the_pods_address_is_listened_on_in_either_family() {
        let six = config(&["--pod-name", "a"], |name| (name == "POSTHOUSE_POD_IP").then(|| "fd00::7".into())).unwrap();
        assert_eq!(six.metrics_listen.to_string(), "[fd00::7]:9992");
        let error = config(&["--pod-name", "a"], |name| (name == "POSTHOUSE_POD_IP").then(|| "x".into())).unwrap_err();
        assert!(error.contains("POSTHOUSE_POD_IP"), "{error}");
    }

    #[test]
    fn what_cannot_work_is_refused_in_one_line() {
        for (args, words) in [
            (&["--ca-lifetime", "1h"][..], "at least 6 times"),
            (&["--certificate-lifetime", "0s"], "no time at all"),
            (&["--trust-domain", "Cluster.Local"], "--trust-domain"),
            (&["--ca", "steal"], "create, adopt"),
        ] {
            let error = config(args, host).unwrap_err();
            assert!(error.contains(words), "{args:?}: {error}");
        }
        let nameless = config(&[], |_| None).unwrap_err();
        assert!(nameless.contains("--pod-name"), "{nameless}");
    }
}
