//! The control socket: messages of `backstay_format::control` over a unix stream socket.

mod client;
mod died;
mod frame;
mod hold;
mod server;
mod silence;

pub use client::{ClientError, ControlClient};
pub use died::Died;
pub use server::{Server, Stopping};
pub use silence::Silence;
