//! `longshore registry show` and `longshore registry rm`

use longshore_api::v1::RegistryView;

use super::schema::Removed;
use crate::connection::ConnectionOptions;
use crate::failure::Failure;

/// Say where the registry is, and whether it answers
#[derive(Debug, Clone, clap::Args)]
pub struct ShowOptions {
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Forget the registry that joined
///
/// Its certificate opens nothing from then on, and no location asks it for images. What runs goes on; nothing new can
/// be pulled until another one joins. Its images stay on its disk.
#[derive(Debug, Clone, clap::Args)]
pub struct RemoveOptions {
    #[command(flatten)]
    connection: ConnectionOptions,
}

/// Shows where it is.
pub async fn show(options: ShowOptions) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    let view = connection.api.registry().await?;
    connection.output.data(&view, render)
}

/// Removes the one that joined.
pub async fn remove(options: RemoveOptions) -> Result<(), Failure> {
    let connection = options.connection.connect()?;
    connection.api.remove_registry().await?;
    let removed = Removed { removed: "registry".to_owned() };
    connection.output.data(&removed, |_| "the registry: removed\n".to_owned())
}

fn render(view: &RegistryView) -> String {
    let RegistryView { joins, joined_at, address, public, public_secure, silent, .. } = view;
    let mut text = match (joins, joined_at) {
        (false, _) => "of the control plane's machine\n".to_owned(),
        (true, None) => "on another machine, none has joined\n".to_owned(),
        (true, Some(at)) => format!("on another machine, joined at {at}\n"),
    };
    if let Some(public) = public {
        let scheme = if *public_secure { "https" } else { "http" };
        text.push_str(&format!("users:     {scheme}://{public}\n"));
    }
    if let Some(address) = address {
        text.push_str(&format!("locations: https://{address}\n"));
    }
    text.push_str(&match silent {
        None => "it answers\n".to_owned(),
        Some(why) => format!("it does not answer: {why}\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_it_is_and_whether_it_answers_is_told() {
        let nowhere = serde_json::json!({"joins": true, "answers": false, "silent": "no registry has joined"});
        let nowhere: RegistryView = serde_json::from_value(nowhere).unwrap();
        let text = render(&nowhere);
        assert_eq!(
            text,
            "on another machine, none has joined\nit does not answer: no registry has joined\n"
        );
        let there = RegistryView {
            joined_at: Some(longshore_types::Timestamp(0)),
            address: Some("192.0.2.7:4605".to_owned()),
            public: Some("registry.example.com:4601".to_owned()),
            public_secure: true,
            answers: true,
            silent: None,
            ..nowhere
        };
        let text = render(&there);
        for part in ["https://registry.example.com:4601", "https://192.0.2.7:4605", "it answers"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let own = RegistryView { joins: false, joined_at: None, address: None, ..there };
        assert!(render(&own).starts_with("of the control plane's machine\n"));
    }
}
