//! The named parts of a command.

macro_rules! phases {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// A named part of a command. The names are stable: records, messages and documents
        /// use them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Phase { $($(#[$doc])* $name,)* }

        impl Phase {
            /// The name in records and messages.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
        }
    };
}

phases! {
    /// The kernel and the image are looked at.
    Image = "image",
    /// The artifact's manifest is read and its files are looked at.
    Artifact = "artifact",
    /// The VMM's version is judged.
    Version = "version",
    /// The VM's directory is made and the VMM started in it.
    Spawn = "spawn",
    /// The machine is described to the VMM and started.
    Start = "start",
    /// The snapshot is loaded and resumed.
    Load = "load",
    /// The VM's lock is taken.
    Lock = "lock",
    /// What an interrupted command left is put right.
    Converge = "converge",
    /// A program in the guest is waited for.
    Checkpoint = "checkpoint",
    /// The image's hooks run.
    Hooks = "hooks",
    /// The guest is made silent.
    Quiesce = "quiesce",
    /// The vCPUs are stopped.
    Pause = "pause",
    /// The machine's state is written.
    Save = "save",
    /// The disks are copied.
    Disks = "disks",
    /// The vCPUs run again.
    Resume = "resume",
    /// The guest is given its new name.
    Rebind = "rebind",
    /// The guest proves that commands can run.
    Probe = "probe",
    /// The VM is ended.
    Stop = "stop",
    /// The result is made visible to others.
    Publish = "publish",
}
