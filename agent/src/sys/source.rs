//! Event sources by descriptor.

/// Implements mio's `Source` for a type that owns its descriptor in `$field`. `SourceFd` borrows
/// the descriptor and never closes it.
macro_rules! source_by_fd {
    ($type:ty, $field:tt) => {
        impl mio::event::Source for $type {
            fn register(
                &mut self,
                registry: &mio::Registry,
                token: mio::Token,
                interests: mio::Interest,
            ) -> std::io::Result<()> {
                let fd = std::os::fd::AsRawFd::as_raw_fd(&self.$field);
                mio::unix::SourceFd(&fd).register(registry, token, interests)
            }

            fn reregister(
                &mut self,
                registry: &mio::Registry,
                token: mio::Token,
                interests: mio::Interest,
            ) -> std::io::Result<()> {
                let fd = std::os::fd::AsRawFd::as_raw_fd(&self.$field);
                mio::unix::SourceFd(&fd).reregister(registry, token, interests)
            }

            fn deregister(&mut self, registry: &mio::Registry) -> std::io::Result<()> {
                let fd = std::os::fd::AsRawFd::as_raw_fd(&self.$field);
                mio::unix::SourceFd(&fd).deregister(registry)
            }
        }
    };
}
pub(super) use source_by_fd;
