//! What an operator says of a location or a node.

use longshore_types::{Country, Label, Traits};

/// What is said of this machine or location.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SaidOptions {
    /// The country whose law holds there, by its code in ISO 3166, such as NL [default: not known, and so in
    /// no jurisdiction that an app asks for]
    #[arg(long, value_name = "CODE")]
    country: Option<Country>,
    /// What apps may ask for or keep away from, such as disk=nvme; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<Label>,
}

impl SaidOptions {
    /// As it is reported.
    pub fn traits(&self) -> Traits {
        Traits { country: self.country, labels: self.labels.iter().cloned().collect() }
    }
}
