//! Recovery plans: disks and scripts in order.
