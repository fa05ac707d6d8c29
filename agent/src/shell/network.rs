//! A clone's network: MAC, address, default route, and an end to what was known of neighbours.
//!
//! All of it is said to the kernel over one socket, without a process, and no link is taken down: a
//! device that cannot change its MAC while it is up keeps it, and the step fails.

use std::io;
use std::net::IpAddr;

use shared::message::{InterfaceAddress, Network};

use crate::agent::StepFailure;
use crate::netlink::{self, Answer, Link, Request};
use crate::sys::netlink::Netlink;

/// Most things of one kind that are removed. The kernel learns fewer neighbours than this.
const REMOVALS_MAX: usize = 4096;

/// Sets what is given on the interface that is meant.
pub(super) fn set(network: &Network) -> Result<(), StepFailure> {
    let mut kernel = Kernel::open().map_err(|err| failure("cannot open a netlink socket", &err))?;
    let link = kernel.find(network.interface.as_deref())?;
    let on = |what: &str, set: io::Result<()>| {
        set.map_err(|err| failure(&format!("cannot {what} {}", link.name), &err))
    };
    if let Some(mac) = network.mac
        && link.mac != Some(mac.bytes())
    {
        let set = kernel.call(&netlink::set_mac(link.index, mac.bytes()));
        on("set the MAC of", set)?;
    }
    if !link.is_up {
        let set = kernel.call(&netlink::set_up(link.index));
        on("set up", set)?;
    }
    if let Some(address) = network.address {
        let set = kernel.set_address(link.index, address);
        on("set the address of", set)?;
    }
    if let Some(gateway) = network.gateway {
        let set = kernel.set_default_route(link.index, gateway);
        on("set the gateway of", set)?;
    }
    let index = link.index;
    let forgotten = kernel.remove(&netlink::list_neighbours(), &|payload| {
        netlink::remove_neighbour(payload, index)
    });
    on("forget the neighbours of", forgotten.map(drop))
}

fn failure(what: &str, err: &io::Error) -> StepFailure {
    StepFailure {
        errno: err.raw_os_error(),
        text: format!("{what}: {err}"),
    }
}

/// The kernel, and the number of the last request to it.
struct Kernel {
    socket: Netlink,
    serial: u32,
}

impl Kernel {
    fn open() -> io::Result<Self> {
        Ok(Self {
            socket: Netlink::open()?,
            serial: 0,
        })
    }

    /// Makes one request and hands each thing that answers it to `each`.
    fn ask(&mut self, request: &Request, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.serial += 1;
        self.socket.send(&request.encode(self.serial))?;
        loop {
            match netlink::read(self.socket.receive()?, self.serial, each) {
                Answer::More => {}
                Answer::Done => return Ok(()),
                Answer::Refused(errno) => return Err(io::Error::from_raw_os_error(errno)),
                Answer::Malformed => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }

    /// Makes one request that is answered by nothing but yes or no.
    fn call(&mut self, request: &Request) -> io::Result<()> {
        self.ask(request, &mut |_| {})
    }

    /// The interface of this name, or the only one there is.
    fn find(&mut self, name: Option<&str>) -> Result<Link, StepFailure> {
        let mut found = Vec::new();
        let listed = self.ask(&netlink::list_links(), &mut |payload| {
            if let Some(link) = Link::parse(payload)
                && name.map_or(link.is_hardware, |name| name == link.name)
            {
                found.push(link);
            }
        });
        listed.map_err(|err| failure("cannot list the network interfaces", &err))?;
        let text = match (name, found.len()) {
            (_, 1) => return Ok(found.remove(0)),
            (Some(name), _) => format!("there is no network interface {name}"),
            (None, 0) => "there is no network interface".to_owned(),
            (None, _) => "there is more than one network interface, and none is named".to_owned(),
        };
        Err(StepFailure { errno: None, text })
    }

    /// Makes an address the only one of its family. It is added first, so that an address that the
    /// kernel refuses costs no other; and once more, because the kernel takes the addresses that
    /// came later in a network of IPv4 away with the first one.
    fn set_address(&mut self, index: u32, address: InterfaceAddress) -> io::Result<()> {
        let add = netlink::add_address(index, address);
        self.call(&add)?;
        let removed = self.remove(&netlink::list_addresses(address.ip()), &|payload| {
            netlink::remove_address(payload, index, address)
        })?;
        if removed > 0 {
            self.call(&add)?;
        }
        Ok(())
    }

    /// Makes a route the only default route over the interface.
    fn set_default_route(&mut self, index: u32, gateway: IpAddr) -> io::Result<()> {
        self.remove(&netlink::list_routes(gateway), &|payload| {
            netlink::remove_default_route(payload, index)
        })?;
        self.call(&netlink::add_default_route(index, gateway))
    }

    /// Removes what `removal` finds in a list. Gives the number of things that it found.
    fn remove(
        &mut self,
        list: &Request,
        removal: &dyn Fn(&[u8]) -> Option<Request>,
    ) -> io::Result<usize> {
        let mut removals = Vec::new();
        self.ask(list, &mut |payload| {
            if removals.len() < REMOVALS_MAX {
                removals.extend(removal(payload));
            }
        })?;
        for request in &removals {
            match self.call(request) {
                Err(err) if !is_gone(&err) => return Err(err),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(removals.len())
    }
}

/// Whether what was to be removed was no longer there: it went with something else, or by itself.
fn is_gone(err: &io::Error) -> bool {
    matches!(
        err.raw_os_error(),
        Some(libc::ESRCH | libc::ENOENT | libc::EADDRNOTAVAIL)
    )
}
