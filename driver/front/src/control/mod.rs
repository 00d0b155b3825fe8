//! The control socket: messages of `backstay_format::control` over a unix stream socket.

mod client;
mod frame;
mod hold;
mod server;
mod silence;

pub use client::{ClientError, ControlClient};
<<<<<<< HEAD
pub use server::{Identity, Server};
pub use silence::{Doing, Silence};
=======
pub use server::{Identity, Server, Stopping};
>>>>>>> 2b20a98 (wip)
