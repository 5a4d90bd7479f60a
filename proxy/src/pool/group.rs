//! The pools of one database and user over all nodes, and what they share.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Weak};

use halyard_health::{NodeId, Signals};
use parking_lot::Mutex;

use super::{Node, Pool, PoolLimits};
use crate::auth::Credential;
use crate::catalog::CatalogHandle;
use crate::config::PoolMode;
use crate::session::Settings;

/// The pools of one database and user.
pub struct Group {
    /// Its number, never used twice.
    pub id: NonZeroU32,
    /// The database.
    pub database: String,
    /// The role.
    pub user: String,
    /// When backends go back.
    pub mode: PoolMode,
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
    templates: Mutex<HashMap<Vec<(String, String)>, Arc<Template>>>,
}

/// What clients with the same startup settings are told when they have logged in.
pub struct Template {
    /// The settings, shared by all sessions that have them.
    pub settings: Arc<Settings>,
    /// ParameterStatus as a server reported it with these settings applied.
    pub parameters: Vec<(String, String)>,
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

    /// What logs in to the nodes.
    pub fn credential(&self) -> Credential {
        self.credential.lock().clone()
    }

    /// What was learned from clients with these startup settings, if anybody had them before.
    pub fn template(&self, settings: &[(String, String)]) -> Option<Arc<Template>> {
        self.templates.lock().get(settings).cloned()
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

/// Everything a group is made from.
pub struct Groups {
    nodes: Vec<Arc<Node>>,
    signals: Signals,
    clock: Arc<AtomicU32>,
    groups: Mutex<HashMap<(String, String), Arc<Group>>>,
}

impl Groups {
    /// No group yet.
    pub fn new(nodes: Vec<Arc<Node>>, signals: Signals, clock: Arc<AtomicU32>) -> Self {
        Self {
            nodes,
            signals,
            clock,
            groups: Mutex::default(),
        }
    }

    /// The group of a database and user; made when its first client has authenticated.
    ///
    /// The credential of the newest login is kept: after a password was changed, it is the one that works.
    pub fn open(
        &self,
        database: &str,
        user: &str,
        credential: Credential,
        mode: PoolMode,
        limits: &PoolLimits,
        catalog: impl FnOnce() -> Arc<CatalogHandle>,
    ) -> Arc<Group> {
        let mut groups = self.groups.lock();
        if let Some(group) = groups.get(&(database.to_owned(), user.to_owned())) {
            if !matches!(credential, Credential::None) {
                *group.credential.lock() = credential;
            }
            return Arc::clone(group);
        }
        let id = u32::try_from(groups.len()).unwrap_or(u32::MAX - 1) + 1;
        let group = Arc::new_cyclic(|group: &Weak<Group>| Group {
            id: NonZeroU32::new(id).expect("one more than a number is not zero"),
            database: database.to_owned(),
            user: user.to_owned(),
            mode,
            catalog: catalog(),
            no_settings: Arc::default(),
            signals: self.signals.clone(),
            clock: Arc::clone(&self.clock),
            pools: self
                .nodes
                .iter()
                .map(|node| Pool::new(Arc::clone(node), group.clone(), limits.clone()))
                .collect(),
            credential: Mutex::new(credential),
            templates: Mutex::default(),
        });
        groups.insert((database.to_owned(), user.to_owned()), Arc::clone(&group));
        group
    }

    /// Advances the coarse clock by a second; the time it shows.
    pub fn tick(&self) -> u32 {
        self.clock.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1
    }

    /// All groups there are.
    pub fn all(&self) -> Vec<Arc<Group>> {
        self.groups.lock().values().cloned().collect()
    }
}
