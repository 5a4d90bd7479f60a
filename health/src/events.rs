//! The log of what changed between two views: one event a line.

use crate::topology::Topology;
use crate::view::{ClusterView, NodeView, Role};

/// Logs every change that an operator would want to find later.
pub(crate) fn log_changes(earlier: &ClusterView, now: &ClusterView) {
    for (then, node) in earlier.nodes.iter().zip(&now.nodes) {
        log_node(then, node);
    }
    if now.system_identifier != earlier.system_identifier
        && let Some(system_identifier) = now.system_identifier
    {
        tracing::info!(%system_identifier, "system identifier learned");
    }
    if now.topology != earlier.topology {
        log_topology(now);
    }
}

fn log_node(then: &NodeView, node: &NodeView) {
    if node.role != then.role {
        let reason = node.reason.map(tracing::field::display);
        let timeline = node.timeline.map(tracing::field::display);
        let error = node.error.as_deref();
        tracing::info!(
            node = %node.name, role = %node.role, was = %then.role, timeline, reason, error, "role changed"
        );
    } else if node.role == Role::Standby && node.serves_reads != then.serves_reads {
        let reason = node.reason.map(tracing::field::display);
        tracing::info!(node = %node.name, serves_reads = node.serves_reads, reason, "standby's reads changed");
    }
}

fn log_topology(view: &ClusterView) {
    match &view.topology {
        Topology::OnePrimary { node, timeline } => {
            let name = view.node(*node).map_or("", |node| &node.name);
            tracing::info!(node = name, %timeline, epoch = view.epoch, "writes go to the primary");
        }
        Topology::NoPrimary { reason } => {
            tracing::warn!(%reason, epoch = view.epoch, "no primary");
        }
        Topology::Split { nodes } => {
            let names: Vec<&str> = nodes
                .iter()
                .filter_map(|&id| view.node(id))
                .map(|node| &*node.name)
                .collect();
            tracing::error!(nodes = %names.join(", "), epoch = view.epoch, "several nodes take writes on one timeline");
        }
    }
}
