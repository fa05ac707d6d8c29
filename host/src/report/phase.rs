//! The named parts of a command.

use crate::values::keyword::keywords;

keywords! {
    /// A named part of a command. Records, messages and documents use the names: they are stable.
    Phase {
        /// Checks the kernel and the image.
        Image = "image",
        /// Reads the artifact's manifest and checks its files.
        Artifact = "artifact",
        /// Checks the VMM's version.
        Version = "version",
        /// Makes the VM's directory and starts the VMM in it.
        Spawn = "spawn",
        /// Describes the machine to the VMM and starts it.
        Start = "start",
        /// Loads the snapshot and resumes it.
        Load = "load",
        /// Takes the VM's lock.
        Lock = "lock",
        /// Repairs what an interrupted command left.
        Converge = "converge",
        /// Waits for a program in the guest to reach its checkpoint.
        Checkpoint = "checkpoint",
        /// Runs the image's hooks.
        Hooks = "hooks",
        /// Quiesces the guest.
        Quiesce = "quiesce",
        /// Stops the vCPUs.
        Pause = "pause",
        /// Writes the machine's state and memory.
        Save = "save",
        /// Copies the disks.
        Disks = "disks",
        /// Starts the vCPUs again.
        Resume = "resume",
        /// Gives the guest its new generation.
        Rebind = "rebind",
        /// Has the guest prove that it can run commands.
        Probe = "probe",
        /// Ends the VM.
        Stop = "stop",
        /// Makes the result visible to other commands.
        Publish = "publish",
    }
}
