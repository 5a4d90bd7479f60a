//! The commands that change something. Each is logged with who gave it, and stands in SHOW EVENTS.

use std::sync::Arc;
use std::time::Duration;

use halyard_health::NodeId;

use super::{Answer, Console, Privilege};
use crate::error::{Report, SqlState};
use crate::operate::{Scope, switch_over};
use crate::pool::Node;

impl Console {
    /// # Errors
    /// 42501 for who may only look.
    pub(super) fn may_run(&self) -> Result<(), Report> {
        if self.privilege == Privilege::Administrator {
            return Ok(());
        }
        Err(Report::error(
            SqlState::INSUFFICIENT_PRIVILEGE,
            "permission denied: this user may look and nothing else",
        )
        .with_detail(format!("\"{}\" is one of admin.stats_users.", self.user)))
    }

    pub(super) async fn pause(&self, database: Option<&str>) -> Result<Answer, Report> {
        let scope = scope(database);
        let named = scope.to_string();
        if self
            .app
            .operations
            .pauses
            .scopes()
            .iter()
            .any(|known| **known == scope)
        {
            return Err(Report::error(
                SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("already paused: {named}"),
            ));
        }
        if let Some(database) = database {
            self.known_database(database)?;
        }
        let limit: Duration = self.app.config.admin.pause_timeout;
        let paused = self.app.operations.pause(scope, limit).await;
        paused.map_err(|open| {
            Report::error(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, open.to_string())
                .with_detail("Nothing is paused. The limit is admin.pause_timeout.")
                .with_hint("SHOW CLIENTS tells who has them.")
        })?;
        self.note(None, &format!("PAUSE of {named}"));
        Ok(Answer::Done("PAUSE"))
    }

    pub(super) fn resume(&self, database: Option<&str>) -> Result<Answer, Report> {
        let scope = database.map(|_| scope(database));
        let resumed = self.app.operations.resume(scope.as_ref());
        resumed
            .map_err(|error| Report::error(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, error.to_string()))?;
        self.note(None, &format!("RESUME of {}", self::scope(database)));
        Ok(Answer::Done("RESUME"))
    }

    pub(super) fn reconnect(&self, database: Option<&str>) -> Result<Answer, Report> {
        if let Some(database) = database {
            self.known_database(database)?;
        }
        self.app.reconnect(database);
        self.note(None, &format!("RECONNECT of {}", scope(database)));
        Ok(Answer::Done("RECONNECT"))
    }

    /// Makes another node the primary. Cancelled, it goes on with the one that there is, unless the engine has its order.
    pub(super) async fn switch_over(&self, to: Option<&str>) -> Result<Answer, Report> {
        let to = to.map(|to| self.known_node(to)).transpose()?.map(|node| node.id);
        let switched = switch_over(&self.app, to).await?;
        let name = |id: NodeId| &self.app.nodes[usize::from(id.0)].name;
        self.note(
            Some(name(switched.to)),
            &format!(
                "SWITCHOVER from {}, transactions held for {} ms,",
                name(switched.from),
                switched.held.as_millis()
            ),
        );
        Ok(Answer::Done("SWITCHOVER"))
    }

    fn known_node(&self, name: &str) -> Result<&Arc<Node>, Report> {
        let mut nodes = self.app.nodes.iter();
        nodes.find(|known| known.name == name).ok_or_else(|| {
            Report::error(SqlState::UNDEFINED_OBJECT, format!("there is no node \"{name}\""))
                .with_hint("SHOW NODES tells their names.")
        })
    }

    pub(super) fn drain(&self, node: &str, drained: bool) -> Result<Answer, Report> {
        let known = self.known_node(node)?;
        let verb = if drained { "DRAIN" } else { "UNDRAIN" };
        if self.app.operations.set_drained(known.id, drained) {
            self.note(Some(node), verb);
        }
        Ok(Answer::Done(verb))
    }

    /// # Errors
    /// 3D000 where nobody has used a database of that name: a mistyped name must not be taken for a pause.
    fn known_database(&self, database: &str) -> Result<(), Report> {
        if self
            .app
            .groups
            .all()
            .iter()
            .any(|group| group.database == database)
        {
            return Ok(());
        }
        Err(Report::error(
            SqlState::INVALID_CATALOG_NAME,
            format!("there are no pools of a database \"{database}\""),
        )
        .with_hint("SHOW DATABASES tells their names."))
    }

    fn note(&self, node: Option<&str>, what: &str) {
        tracing::info!(user = ?self.user, node, command = %what, "a command on the console");
        let epoch = self.app.routing.load().epoch;
        let what = format!("{what} by {}", self.user);
        self.app.history.note("operator", node, epoch, what);
    }
}

fn scope(database: Option<&str>) -> Scope {
    database.map_or(Scope::All, |name| Scope::Database(name.to_owned()))
}
