//! Frames of layers of other nodes of the location, which have or pull the same image.
//!
//! Each is asked over its gate, with certificates on both sides. What it gives the pull checks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use longshore_api::ProblemCode;
use longshore_api::links::{ImageNeighbour, ImageNeighbours};
use longshore_image::converted::FRAME;
use longshore_image::source::{Answer, Known, Neighbour, Neighbours, Retry, SourceError};
use longshore_link::{CallError, Client, Endpoint, chain};
use longshore_types::{Digest, NodeName, Repository};

use crate::joined::Joined;
use crate::source::is_not_found;

/// The other nodes, as this one calls them.
pub struct Near {
    joined: Arc<Joined>,
    /// Those that were called, by where their gates are, so that connections are kept.
    called: Mutex<BTreeMap<NodeName, (Endpoint, Client)>>,
}

impl Near {
    /// Those of a node that joined.
    pub fn new(joined: Arc<Joined>) -> Self {
        Self { joined, called: Mutex::default() }
    }

    /// Who has or pulls an image. Without an answer nobody is known, and the pull does without.
    pub async fn of_image(&self, repository: &Repository, image: &Digest) -> Neighbours {
        let own = self.joined.node();
        let path =
            format!("/link/nodes/{own}/images/neighbours?repository={repository}&digest={image}");
        let told = self.joined.client().get::<ImageNeighbours>(&path).await;
        let nodes = match told {
            Ok(ImageNeighbours { nodes }) => nodes,
            // As of a location of the release before, which knows of none.
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "no neighbours");
                Vec::new()
            }
        };
        let others = nodes.into_iter().filter_map(|named| self.known(named)).collect();
        Neighbours { own: own.to_string(), others }
    }

    fn known(&self, ImageNeighbour { node, gate, has_all }: ImageNeighbour) -> Option<Known> {
        let client = gate.parse::<Endpoint>().and_then(|gate| self.client(&node, gate));
        match client {
            Ok(client) => {
                let (name, asked) = (node.to_string(), Arc::new(Gate(client)));
                Some(Known { name, has_all, asked })
            }
            Err(why) => {
                tracing::warn!(%node, why, "a neighbour cannot be called");
                None
            }
        }
    }

    fn client(&self, node: &NodeName, gate: Endpoint) -> Result<Client, String> {
        let mut called = self.called.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, client)) = called.get(node)
            && *at == gate
        {
            return Ok(client.clone());
        }
        let client = self.joined.neighbour(node, gate.clone()).map_err(|error| chain(&error))?;
        called.insert(node.clone(), (gate, client.clone()));
        Ok(client)
    }
}

/// The gate of another node.
struct Gate(Client);

impl Gate {
    async fn ask(&self, layer: &Digest, idx: usize) -> Result<Answer, SourceError> {
        let path = format!("/layers/{layer}/frames/{idx}");
        let failed =
            |error| SourceError::new("it does not give the frame", Retry::CanHelp).caused_by(error);
        let answer = match self.0.send(Method::GET, &path, None::<&()>).await {
            Ok(answer) => answer,
            // One of the release before knows of no layers.
            Err(error) if is_not_found(&error) => return Ok(Answer::Absent),
            // This node is not vouched for there.
            Err(CallError::Refused(problem)) if problem.code == ProblemCode::Forbidden => {
                return Ok(Answer::Absent);
            }
            Err(error) => return Err(failed(error)),
        };
        // What it would give has not come there yet.
        if answer.status() == StatusCode::ACCEPTED {
            return Ok(Answer::OnItsWay);
        }
        let body = Limited::new(answer.into_body(), FRAME).collect().await;
        let broken = |error| SourceError::new("a frame broke off", Retry::CanHelp).caused_by(error);
        Ok(Answer::Given(body.map_err(broken)?.to_bytes()))
    }
}

impl Neighbour for Gate {
    fn frame<'a>(
        &'a self,
        layer: &'a Digest,
        idx: usize,
    ) -> BoxFuture<'a, Result<Answer, SourceError>> {
        Box::pin(self.ask(layer, idx))
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::extract::Path;
    use axum::response::IntoResponse as _;
    use axum::routing::get;
    use longshore_api::Problem;
    use longshore_link::{Listener, Refusal, now};
    use longshore_trust::{Credentials, LocationAuthority, Name};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::joined::tests::{ams, authority, joined};

    /// Serves as who has this name; where.
    fn serve(authority: &LocationAuthority, name: &Name, router: Router) -> Endpoint {
        let any = Endpoint::Tls("127.0.0.1:0".to_owned());
        let listener = Listener::bind("test", &any).unwrap();
        let at = listener.endpoint().unwrap();
        let credentials = Credentials::new(&authority.identify(name, now()).unwrap()).unwrap();
        // It ends with the runtime of the test.
        tokio::spawn(listener.serve_with(credentials, router, CancellationToken::new()));
        at
    }

    fn node(name: &str) -> Name {
        Name::Node(ams(), name.parse().unwrap())
    }

    #[tokio::test]
    async fn frames_come_of_who_is_named_and_a_location_of_the_release_before_names_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(dir.path());
        let refused = |code| Refusal(Problem::new(code, "not now")).into_response();
        let give = get(move |Path((_, idx)): Path<(String, usize)>| async move {
            match idx {
                0 => b"contents".into_response(),
                1 => StatusCode::NOT_FOUND.into_response(),
                2 => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
                4 => StatusCode::ACCEPTED.into_response(),
                5 => refused(ProblemCode::Forbidden),
                // Its location does not vouch for anybody now.
                6 => refused(ProblemCode::Unavailable),
                _ => vec![0; FRAME + 1].into_response(),
            }
        });
        let gate = Router::new().route("/layers/{layer}/frames/{frame}", give);
        let second = serve(&authority, &node("n2"), gate.clone());
        let other = serve(&authority, &node("n4"), gate);
        let named = |node: &str, gate: String, has_all| ImageNeighbour {
            node: node.parse().unwrap(),
            gate,
            has_all,
        };
        let nodes = vec![
            named("n2", second.to_string(), true),
            named("n3", other.to_string(), false),
            named("n5", "nowhere".to_owned(), false),
        ];
        let told = get(move || async move { axum::Json(ImageNeighbours { nodes }) });
        let told = Router::new().route("/link/nodes/n1/images/neighbours", told);
        let location = serve(&authority, &Name::Location(ams()), told);
        let near = Near::new(joined(dir.path(), &authority, location));
        let (repository, digest) = ("default/web".parse().unwrap(), Digest::from_sha256([1; 32]));
        let Neighbours { own, others } = near.of_image(&repository, &digest).await;
        let names: Vec<_> = others.iter().map(|one| (&*one.name, one.has_all)).collect();
        assert_eq!((&*own, names), ("n1", vec![("n2", true), ("n3", false)]));

        let second = &others[0].asked;
        let given = Answer::Given("contents".into());
        let expected =
            [(0, given), (1, Answer::Absent), (4, Answer::OnItsWay), (5, Answer::Absent)];
        for (idx, answer) in expected {
            assert_eq!(second.frame(&digest, idx).await.unwrap(), answer, "{idx}");
        }
        for idx in [2, 3, 6] {
            second.frame(&digest, idx).await.unwrap_err();
        }
        // Who answers there is another than the one that is named.
        let error = others[1].asked.frame(&digest, 0).await.unwrap_err();
        assert!(chain(&error).contains("cannot reach"), "{}", chain(&error));

        let before = serve(&authority, &Name::Location(ams()), Router::new());
        let near = Near::new(joined(dir.path(), &authority, before));
        assert_eq!(near.of_image(&repository, &digest).await.others.len(), 0);
    }
}
