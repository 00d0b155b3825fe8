//! Points as images, and images as disks of a vault.
