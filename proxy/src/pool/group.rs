//! The pools of one database and user over all nodes, and what they share.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use halyard_health::{NodeId, Signals};
use parking_lot::Mutex;

use super::{Node, Pool, PoolLimits, UNTOLD};
use crate::auth::Credential;
use crate::catalog::CatalogHandle;
use crate::config::{PoolMode, RoutePolicy};
use crate::error::{Report, SqlState};
use crate::held::{Amount, Held};
use crate::session::Settings;

/// Templates by the startup settings they belong to.
type Templates = HashMap<Vec<(String, String)>, Arc<Template>>;

/// The pools of one database and user.
pub struct Group {
    /// Its number, which no group had before it.
    pub id: NonZeroU32,
    /// The database.
    pub database: String,
    /// The role.
    pub user: String,
    /// When backends go back.
    pub mode: PoolMode,
    /// Where its sessions' statements go, and what their reads see, where they do not say it themselves.
    pub policy: RoutePolicy,
    /// What the database's functions do.
    pub catalog: Arc<CatalogHandle>,
    /// Settings of a client that set none.
    pub no_settings: Arc<Settings>,
    /// Where to tell what was seen of the nodes.
    pub signals: Signals,
    /// Seconds since the process began, coarse.
    pub clock: Arc<AtomicU32>,
    pools: Vec<Arc<Pool>>,
    credential: Mutex<Credential>,
    templates: Mutex<Templates>,
    /// What its clients have held.
    pub held: Arc<Held>,
    /// Whether its pools reserve backends; see [`Group::reserve`].
    reserves: Arc<AtomicBool>,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Group({}, {})", self.database, self.user)
    }
}

/// What the configuration grants a database and user.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// When backends go back.
    pub mode: PoolMode,
    /// Where statements go, and what reads see.
    pub policy: RoutePolicy,
}

/// What clients with the same startup settings are told when they have logged in.
pub struct Template {
    /// The settings, shared by all sessions that have them.
    pub settings: Arc<Settings>,
    /// ParameterStatus as a server reported it with these settings applied.
    pub told: Arc<Vec<(String, String)>>,
}

/// Distinct startup settings remembered per group; beyond it the memory starts afresh.
const TEMPLATES_MAX: usize = 1024;

impl Group {
    /// The pool of a node.
    #[inline]
    pub fn pool(&self, node: NodeId) -> &Arc<Pool> {
        &self.pools[usize::from(node.0)]
    }

    /// All pools, in the configuration's order of nodes.
    pub fn pools(&self) -> &[Arc<Pool>] {
        &self.pools
    }

    /// The `statement_timeout` of its sessions that set none: a default of the role, the database or the server. Where the
    /// nodes have it differently it is the longest of theirs, as nobody knows yet which one is to run a statement that
    /// waits; `None` where one of them has none, or none was asked yet.
    pub fn statement_timeout(&self) -> Option<Duration> {
        let known = self
            .pools
            .iter()
            .map(|pool| pool.statement_timeout_ms.load(Ordering::Relaxed));
        longest_timeout(known)
    }

    /// Has its pools reserve backends for those who have drawn from sequences on them, from now on and for the life of
    /// the process: its sessions ask for what they have drawn.
    pub fn reserve(&self) {
        self.reserves.store(true, Ordering::Relaxed);
    }

    /// Whether a session or a connection belongs to it. To be asked under the lock of the one map that holds the
    /// group: without another holder, nobody can take it into use meanwhile. A client in line needs no look of its
    /// own, since its session holds the group.
    fn is_used(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1
            || self.pools.iter().any(|pool| {
                let usage = pool.usage();
                usage.active + usage.idle + usage.connecting > 0
            })
    }

    /// What logs in to the nodes.
    pub fn credential(&self) -> Credential {
        self.credential.lock().clone()
    }

    /// What was learned from clients with these startup settings, if anybody had them before.
    pub fn template(&self, settings: &[(String, String)]) -> Option<Arc<Template>> {
        self.templates.lock().get(settings).cloned()
    }

    /// Forgets what clients were told: a reload, ALTER ROLE or a new version of the server may have changed it.
    pub fn forget_templates(&self) {
        self.templates.lock().clear();
    }

    /// Keeps what was learned from the first client with its startup settings.
    pub fn remember(&self, template: Arc<Template>) {
        let mut templates = self.templates.lock();
        if templates.len() >= TEMPLATES_MAX {
            templates.clear();
        }
        templates.insert(template.settings.pairs().to_vec(), template);
    }
}

fn longest_timeout(known_ms: impl Iterator<Item = u32>) -> Option<Duration> {
    let mut told = known_ms.filter(|&limit_ms| limit_ms != UNTOLD);
    let first = told.next()?;
    let longest = told.fold(first, |longest, other| match (longest, other) {
        (0, _) | (_, 0) => 0,
        (one, other) => one.max(other),
    });
    (longest > 0).then(|| Duration::from_millis(longest.into()))
}

/// Groups there may be at a time. Each costs a pool per node, and each database among them a task that reads its
/// catalogue: whoever may log in must not be able to make them without bound by trying names.
const GROUPS_MAX: usize = 1_000;

/// Everything a group is made from.
pub struct Groups {
    nodes: Vec<Arc<Node>>,
    signals: Signals,
    clock: Arc<AtomicU32>,
    known: Mutex<Known>,
}

/// The groups there are, by database and user.
#[derive(Default)]
struct Known {
    groups: HashMap<(String, String), Arc<Group>>,
    /// Those whose groups have gone and reserved backends, [`GROUPS_MAX`] at most.
    reserving: HashSet<(String, String)>,
    /// The number given last.
    last_id: u32,
}

impl Groups {
    /// No group yet.
    pub fn new(nodes: Vec<Arc<Node>>, signals: Signals, clock: Arc<AtomicU32>) -> Self {
        Self {
            nodes,
            signals,
            clock,
            known: Mutex::default(),
        }
    }

    /// What the other groups in use have held each.
    pub fn held_by_others(&self, group: &Arc<Group>) -> Vec<Amount> {
        let known = self.known.lock();
        let others = known.groups.values().filter(|other| other.id != group.id);
        let used = others.filter(|other| other.is_used());
        used.map(|other| other.held.amount()).collect()
    }

    /// The group of a database and user; made when its first client has authenticated.
    ///
    /// The credential of the newest login is kept: after a password was changed, it is the one that works.
    ///
    /// # Errors
    /// FATAL 53300 when there are too many groups, all of them in use.
    pub fn open(
        &self,
        database: &str,
        user: &str,
        credential: Credential,
        terms: Terms,
        limits: &PoolLimits,
        catalog: impl FnOnce() -> Arc<CatalogHandle>,
    ) -> Result<Arc<Group>, Report> {
        let mut known = self.known.lock();
        let name = (database.to_owned(), user.to_owned());
        if let Some(group) = known.groups.get(&name) {
            if !matches!(credential, Credential::None) {
                *group.credential.lock() = credential;
            }
            return Ok(Arc::clone(group));
        }
        if known.groups.len() >= GROUPS_MAX {
            known.forget_unused();
        }
        if known.groups.len() >= GROUPS_MAX {
            return Err(Report::fatal(
                SqlState::TOO_MANY_CONNECTIONS,
                "too many databases and users are in use",
            )
            .with_detail(format!(
                "There are pools for {GROUPS_MAX} pairs of database and user already."
            )));
        }
        let id = known.next_id();
        let reserves = limits.reserves || known.reserving.contains(&name);
        let reserves = Arc::new(AtomicBool::new(reserves));
        let group = Arc::new_cyclic(|group: &Weak<Group>| Group {
            id,
            database: database.to_owned(),
            user: user.to_owned(),
            mode: terms.mode,
            policy: terms.policy,
            catalog: catalog(),
            no_settings: Arc::default(),
            signals: self.signals.clone(),
            clock: Arc::clone(&self.clock),
            pools: self
                .nodes
                .iter()
                .map(|node| {
                    Pool::new(
                        Arc::clone(node),
                        group.clone(),
                        limits.clone(),
                        Arc::clone(&reserves),
                    )
                })
                .collect(),
            credential: Mutex::new(credential),
            templates: Mutex::default(),
            held: Arc::default(),
            reserves,
        });
        known.groups.insert(name, Arc::clone(&group));
        Ok(group)
    }

    /// Forgets the groups that have neither a session nor a connection, and with the last group of a database what
    /// was known of its functions. To be called now and then, while nobody holds what [`Groups::all`] gave.
    pub fn sweep(&self) {
        self.known.lock().forget_unused();
    }

    /// Advances the coarse clock by a second; the time it shows.
    pub fn tick(&self) -> u32 {
        self.clock.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// All groups there are.
    pub fn all(&self) -> Vec<Arc<Group>> {
        self.known.lock().groups.values().cloned().collect()
    }
}

impl Known {
    fn forget_unused(&mut self) {
        let reserving = &mut self.reserving;
        self.groups.retain(|name, group| {
            let used = group.is_used();
            if !used && group.reserves.load(Ordering::Relaxed) && reserving.len() < GROUPS_MAX {
                reserving.insert(name.clone());
            }
            used
        });
    }

    fn next_id(&mut self) -> NonZeroU32 {
        // After four thousand million groups the numbers begin again; nobody remembers the first ones by then.
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        NonZeroU32::new(self.last_id).expect("it counts from one")
    }
}

#[cfg(test)]
mod tests;
