//! SWITCHOVER: another node becomes the primary because an operator says so, and nobody sees an error.
//!
//! New transactions that go to the primary are held, open ones end, the target catches up, and the engine promotes it:
//! Halyard itself promotes nobody. The hold is a guard: a step that fails, and a command that is cancelled, let everybody
//! go on with the primary that there is.

use std::sync::Arc;
use std::time::Duration;

use halyard_health::{Answer, AuthorityView, ClusterView, EngineNode, NodeId, SslMode};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::Scope;
use crate::app::App;
use crate::config::Engine;
use crate::error::{Report, SqlState};

/// Until the target has replayed everything, with no writes coming.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(10);
/// For the engine's answer to the order.
const ENGINE_LIMIT: Duration = Duration::from_secs(5);
/// From the order until the target takes writes; it takes about 4 s. Clients wait no longer than `failover.hold`.
const PROMOTION_LIMIT: Duration = Duration::from_secs(45);

/// The monitor's role lacks it by default, and `halyard cluster` grants it.
const PROMOTE: &str = "SELECT pgautofailover.perform_promotion($1, $2)";

/// What was done.
#[derive(Debug)]
pub struct Switched {
    /// The primary of before.
    pub from: NodeId,
    /// The primary of now.
    pub to: NodeId,
    /// How long transactions were held at most.
    pub held: Duration,
}

/// Makes `to` the primary, or the first of the nodes, as they are configured, that can be.
///
/// # Errors
/// A step failed, and nothing is held any more. Up to the order to the engine nothing has changed then.
pub async fn switch_over(app: &App, to: Option<NodeId>) -> Result<Switched, Report> {
    let Engine::PgAutoFailover { formation, .. } = &app.config.engine else {
        return Err(Report::error(
            SqlState::FEATURE_NOT_SUPPORTED,
            "SWITCHOVER needs pg_auto_failover as the engine",
        )
        .with_hint("Have whoever promotes do it, between PAUSE and RESUME."));
    };
    let view = Arc::clone(&app.view.borrow());
    let (from, target) = choose(&view, to)?;
    let engine_name = target.name.clone();
    let to = target
        .node
        .ok_or_else(|| refused("the target is not configured"))?;
    let began = Instant::now();
    let pauses = &app.operations.pauses;
    let paused = pauses.pause(Scope::Primary, app.config.admin.pause_timeout).await;
    let paused = paused.map_err(|open| {
        refused(open.to_string())
            .with_detail("The limit is admin.pause_timeout.")
            .with_hint("SHOW CLIENTS tells who has them.")
    })?;
    catch_up(app, from, to).await?;
    let moved = pauses.primary_moved();
    order(app, formation, &engine_name).await?;
    timeout(PROMOTION_LIMIT, moved).await.map_err(|_| {
        Report::error(
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            "the engine has its order, or may have, and no other node takes writes yet",
        )
        .with_detail(format!("It was waited for {} ms.", PROMOTION_LIMIT.as_millis()))
        .with_hint("Statements are held on as without a primary. SHOW NODES tells how far it is.")
    })?;
    let to = app.routing.load().primary.unwrap_or(to);
    drop(paused);
    Ok(Switched {
        from,
        to,
        held: began.elapsed(),
    })
}

fn refused(why: impl Into<String>) -> Report {
    Report::error(
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("nothing was switched: {}", why.into()),
    )
}

/// Who is the primary, and who is to be. The engine has to be at rest: it would do something else first.
fn choose(view: &ClusterView, to: Option<NodeId>) -> Result<(NodeId, &EngineNode), Report> {
    let Some((from, _)) = view.topology.primary() else {
        return Err(refused(view.topology.to_string()));
    };
    let answer: &Answer = match &view.authority {
        AuthorityView::Answers(answer) => answer,
        AuthorityView::Silent { error, .. } => {
            return Err(refused(format!("the engine does not answer: {error}")));
        }
        AuthorityView::Absent | AuthorityView::Pending => {
            return Err(refused("the engine was not heard yet"));
        }
    };
    let unsettled = |node: &&EngineNode| {
        node.reported != node.goal || !matches!(node.goal.as_str(), "primary" | "secondary")
    };
    if let Some(node) = answer.nodes.iter().find(unsettled) {
        return Err(refused(format!(
            "the engine is not at rest: {} is {} and shall be {}",
            node.name, node.reported, node.goal
        )));
    }
    let name = |id: NodeId| view.node(id).map_or("?", |node| &node.name);
    if to == Some(from) {
        return Err(refused(format!("{} is the primary already", name(from))));
    }
    let mut backups: Vec<&EngineNode> = answer
        .nodes
        .iter()
        .filter(|node| node.goal == "secondary" && node.node.is_some())
        .collect();
    backups.sort_by_key(|node| node.node);
    let target = backups.into_iter().find(|node| to.is_none() || node.node == to);
    let target = target.ok_or_else(|| match to {
        Some(to) => refused(format!("{} is no backup of {}", name(to), name(from))),
        None => refused(format!("{} has no backup that could take its place", name(from))),
    })?;
    Ok((from, target))
}

/// Waits until `to` has replayed what `from` has written. Nothing is written meanwhile but by those who do not come
/// through this Halyard.
async fn catch_up(app: &App, from: NodeId, to: NodeId) -> Result<(), Report> {
    let mut view = app.view.clone();
    let held = std::time::Instant::now();
    let deadline = Instant::now() + CATCH_UP_LIMIT;
    let mut position = None;
    loop {
        {
            let now = view.borrow_and_update();
            let primary = now.node(from);
            position = position.or_else(|| {
                let primary = primary.filter(|primary| primary.answered > Some(held))?;
                primary.position
            });
            let replay = now.node(to).and_then(|target| target.replay);
            if position.is_some() && replay >= position {
                return Ok(());
            }
        }
        if !matches!(timeout_at(deadline, view.changed()).await, Ok(Ok(()))) {
            return Err(refused("the target has not replayed everything")
                .with_detail(format!("It was waited for {} ms.", CATCH_UP_LIMIT.as_millis())));
        }
    }
}

/// Has the engine promote a node, as `pg_autoctl perform promotion` does.
async fn order(app: &App, formation: &str, node: &str) -> Result<(), Report> {
    let Engine::PgAutoFailover {
        host,
        port,
        database,
        user,
        password,
        ..
    } = &app.config.engine
    else {
        return Ok(());
    };
    let tls = app.nodes.first().map(|node| node.target.tls.clone());
    let tls = tls.ok_or_else(|| refused("there are no nodes"))?;
    let mut postgres = tokio_postgres::Config::new();
    postgres
        .host(host)
        .port(*port)
        .user(user)
        .dbname(database)
        .application_name("halyard_switchover")
        .connect_timeout(ENGINE_LIMIT)
        // An order that has not been taken by then is not taken later, when nobody is held for it.
        .options("-c statement_timeout=4s")
        .ssl_mode(if host.starts_with('/') {
            SslMode::Disable
        } else {
            tls.ssl_mode()
        });
    if let Some(password) = password {
        postgres.password(password.reveal());
    }
    let mut sent = false;
    let ordered = async {
        let (client, connection) = postgres.connect(tls).await?;
        let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
        sent = true;
        client.query_one(PROMOTE, &[&formation, &node]).await.map(drop)
    };
    let told = timeout(ENGINE_LIMIT, ordered).await;
    match told {
        Ok(Ok(())) => Ok(()),
        // It may have its order: whoever went on would meet a primary that is demoted.
        Err(_) if sent => Ok(()),
        Ok(Err(error)) if sent && error.as_db_error().is_none() => Ok(()),
        Ok(Err(error)) => {
            let words = error.as_db_error().map_or_else(
                || error.to_string(),
                |error| format!("{} ({})", error.message(), error.code().code()),
            );
            Err(refused(format!("the engine refused: {words}")).with_hint(format!(
                "The role needs EXECUTE on pgautofailover.perform_promotion(text, text): user \"{user}\" of [engine]."
            )))
        }
        Err(_) => Err(refused("the engine does not answer in time")),
    }
}

#[cfg(test)]
mod tests {
    use halyard_health::{NodeConfig, Role, Secret, TimelineId, Topology};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::tls::TlsPolicy;

    /// A trio whose first node is the primary, with the engine's word on each.
    fn view(states: [(&str, &str); 3]) -> ClusterView {
        let nodes = ["node1", "node2", "node3"].map(|name| NodeConfig {
            name: name.to_owned(),
            host: "127.0.0.1".to_owned(),
            port: 1,
        });
        let over = CancellationToken::new();
        over.cancel();
        let config = halyard_health::Config::new(nodes.to_vec(), "nobody", Secret::default(), "postgres");
        let health = halyard_health::spawn_with_tls(config, TlsPolicy::Never, over);
        let mut view = health.view.borrow().as_ref().clone();
        view.topology = Topology::OnePrimary {
            node: NodeId(0),
            timeline: TimelineId(1),
        };
        view.nodes[0].role = Role::Primary;
        let node = |(number, (reported, goal)): (u16, (&str, &str))| EngineNode {
            node: Some(NodeId(number)),
            name: format!("node{}", number + 1),
            host: "127.0.0.1".to_owned(),
            port: 1,
            reported: reported.to_owned(),
            goal: goal.to_owned(),
            leads: goal == "primary",
        };
        view.authority = AuthorityView::Answers(Arc::new(Answer {
            at: std::time::Instant::now(),
            primary: Some(NodeId(0)),
            candidate: Some(NodeId(0)),
            nodes: (0..).zip(states).map(node).collect(),
        }));
        view
    }

    const PRIMARY: (&str, &str) = ("primary", "primary");
    const BACKUP: (&str, &str) = ("secondary", "secondary");

    #[tokio::test]
    async fn the_first_backup_is_next_unless_another_is_named() {
        let view = view([PRIMARY, BACKUP, BACKUP]);
        let chosen = |to| choose(&view, to).map(|(from, to)| (from, to.node));
        assert_eq!(chosen(None), Ok((NodeId(0), Some(NodeId(1)))));
        assert_eq!(chosen(Some(NodeId(2))), Ok((NodeId(0), Some(NodeId(2)))));
        let refused = |to| chosen(Some(to)).unwrap_err().message.into_owned();
        assert!(refused(NodeId(0)).contains("node1 is the primary already"));
        assert!(refused(NodeId(7)).contains("is no backup of node1"));
    }

    #[tokio::test]
    async fn nothing_is_begun_while_the_engine_is_at_work_or_silent() {
        let refused = |view: &ClusterView| choose(view, None).unwrap_err().message.into_owned();
        let moving = view([PRIMARY, BACKUP, ("catchingup", "secondary")]);
        assert!(refused(&moving).contains("the engine is not at rest: node3 is catchingup"));
        let alone = view([PRIMARY, ("maintenance", "maintenance"), BACKUP]);
        assert!(refused(&alone).contains("not at rest"));
        let mut silent = view([PRIMARY, BACKUP, BACKUP]);
        silent.authority = AuthorityView::Silent {
            since: std::time::Instant::now(),
            error: "gone".into(),
        };
        assert!(refused(&silent).contains("the engine does not answer: gone"));
    }
}
