//! The flags of `posthouse env`.

use std::ops::Deref;

use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, FromArgMatches, ValueEnum};

use super::values;

/// The flags of `posthouse env`, checked: clap knows no flag that only one value of another admits.
#[derive(Debug)]
pub(crate) struct EnvArgs(EnvFlags);

impl Deref for EnvArgs {
    type Target = EnvFlags;

    fn deref(&self) -> &EnvFlags {
        &self.0
    }
}

impl FromArgMatches for EnvArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let flags = EnvFlags::from_arg_matches(matches)?;
        if flags.container.is_some() && flags.format != EnvFormat::Patch {
            let why = "--container is for --format patch; an env list is of no container";
            return Err(clap::Error::raw(ErrorKind::ArgumentConflict, why));
        }
        Ok(Self(flags))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for EnvArgs {
    fn augment_args(command: Command) -> Command {
        EnvFlags::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        EnvFlags::augment_args_for_update(command)
    }
}

/// The flags themselves; none has an environment variable, since a person types them.
#[derive(Args, Debug)]
#[command(
    max_term_width = 110,
    after_help = "Examples:\n  \
    posthouse env --no-proxy api.example.com,.corp.example\n  \
    kubectl patch deployment web --patch \"$(posthouse env --format patch --container app)\""
)]
pub(crate) struct EnvFlags {
    /// What is printed: 'yaml', a container's env list, or 'patch', a patch of a workload
    ///
    /// The patch is for 'kubectl patch' of a Deployment, StatefulSet or DaemonSet and needs --container. It replaces what
    /// the container has in these variables: give names that stood in its NO_PROXY by --no-proxy.
    #[arg(long, value_name = "FORMAT", default_value = "yaml")]
    pub(crate) format: EnvFormat,

    /// Name of the container that --format patch sets the variables of
    ///
    /// [default: none; --format patch needs it]
    #[arg(long, value_name = "NAME", required_if_eq("format", "patch"), value_parser = values::dns_label)]
    pub(crate) container: Option<String>,

    /// Port of the nodes' --outbound-listen
    #[arg(long, value_name = "PORT", default_value = "4140", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: u16,

    /// The nodes' addresses (status.hostIP) are IPv6, which a URL has in brackets
    #[arg(long)]
    pub(crate) ipv6: bool,

    /// More names that are called directly, without the proxy: those outside the cluster, above all
    ///
    /// Separated by commas; the flag may be repeated. Names alone, without scheme, path or port. A leading dot means all
    /// names below one. An IPv4 address may have a prefix length, which not every client understands.
    ///
    /// [default: none]
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = values::no_proxy)]
    pub(crate) no_proxy: Vec<String>,

    /// DNS suffix of the cluster, for the API server's full name
    #[arg(long, value_name = "SUFFIX", default_value = "cluster.local", value_parser = values::domain)]
    pub(crate) cluster_domain: String,

    /// Also sets JAVA_TOOL_OPTIONS: Java reads none of the other variables
    #[arg(long)]
    pub(crate) java: bool,

    /// Spaces in front of each line, to fit the manifest that it is put into
    #[arg(long, value_name = "N", default_value = "0", value_parser = clap::value_parser!(u8).range(..=64))]
    pub(crate) indent: u8,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EnvFormat {
    Yaml,
    Patch,
}
