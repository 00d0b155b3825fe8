//! Failover to another host and back.
