//! A clone's network: sets MAC, address and default route, and drops the learned neighbours.
//!
//! All of it goes over one netlink socket, without a process, and no link is taken down: a device
//! that cannot change its MAC while it is up keeps it, and the step fails.

use std::io;
use std::net::IpAddr;

use shared::message::{InterfaceAddress, Network};

use crate::agent::StepFailure;
use crate::netlink::{self, Answer, Link, Request, RouteChange};
use crate::sys::netlink::Netlink;

/// Objects of one kind that are changed. The kernel learns fewer neighbours than this.
const CHANGES_MAX: usize = 4096;

/// The object to be removed was gone: removed together with another one, or expired.
const GONE: [i32; 3] = [libc::ESRCH, libc::ENOENT, libc::EADDRNOTAVAIL];

/// Sets what is given on the given interface.
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
        let set = kernel.follow_mac(&link, mac.bytes());
        on("set the link-local address of", set)?;
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
    let forgotten = kernel.forget_neighbours(link.index);
    on("forget the neighbours of", forgotten)
}

fn failure(what: &str, err: &io::Error) -> StepFailure {
    StepFailure {
        errno: err.raw_os_error(),
        text: format!("{what}: {err}"),
    }
}

/// A socket to the kernel, and the number of the last request.
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

    /// Makes one request and hands each object in its answer to `each`.
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

    /// Makes one request without objects in its answer.
    fn call(&mut self, request: &Request) -> io::Result<()> {
        self.ask(request, &mut |_| {})
    }

    /// The interface with this name, or the only one there is.
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
            (None, _) => "there is more than one network interface; name one".to_owned(),
        };
        Err(StepFailure { errno: None, text })
    }

    /// Replaces the link-local address that the kernel derived from the earlier MAC and would keep:
    /// siblings on one bridge would share it. Without such an address the kernel derived it from
    /// something else, or will derive it from the new MAC.
    fn follow_mac(&mut self, link: &Link, mac: [u8; 6]) -> io::Result<()> {
        let earlier = link.mac.and_then(netlink::link_local_address);
        let (Some(earlier), Some(address)) = (earlier, netlink::link_local_address(mac)) else {
            return Ok(());
        };
        match self.call(&netlink::drop_address(link.index, earlier)) {
            Ok(()) => self.call(&netlink::add_address(link.index, address)),
            Err(_) => Ok(()),
        }
    }

    /// Makes an address the only one of its family. It is added first, so that an address that the
    /// kernel refuses costs no other one. It is added again afterwards, because with the first
    /// address of an IPv4 network the kernel also removes those added later. That drops default
    /// routes too, which were not to change: re-adds those whose gateway is still on-link.
    fn set_address(&mut self, index: u32, address: InterfaceAddress) -> io::Result<()> {
        let add = netlink::add_address(index, address);
        self.call(&add)?;
        let routes = self.collect(&netlink::list_routes(address.ip()), &|payload| {
            netlink::change_default_route(payload, index, RouteChange::Restore)
        })?;
        let removals = self.collect(&netlink::list_addresses(address.ip()), &|payload| {
            netlink::remove_address(payload, index, address)
        })?;
        if removals.is_empty() {
            return Ok(());
        }
        self.call_all(&removals, &GONE)?;
        self.call(&add)?;
        self.call_all(
            &routes,
            &[libc::EEXIST, libc::ENETUNREACH, libc::EHOSTUNREACH],
        )
    }

    /// Makes a route the only default route over the interface.
    fn set_default_route(&mut self, index: u32, gateway: IpAddr) -> io::Result<()> {
        let removals = self.collect(&netlink::list_routes(gateway), &|payload| {
            netlink::change_default_route(payload, index, RouteChange::Remove)
        })?;
        self.call_all(&removals, &GONE)?;
        self.call(&netlink::add_default_route(index, gateway))
    }

    /// Drops the learned neighbours of an interface.
    fn forget_neighbours(&mut self, index: u32) -> io::Result<()> {
        let removals = self.collect(&netlink::list_neighbours(), &|payload| {
            netlink::remove_neighbour(payload, index)
        })?;
        self.call_all(&removals, &GONE)
    }

    /// Lists objects, and returns the requests that `make` gives for them.
    fn collect(
        &mut self,
        list: &Request,
        make: &dyn Fn(&[u8]) -> Option<Request>,
    ) -> io::Result<Vec<Request>> {
        let mut requests = Vec::new();
        self.ask(list, &mut |payload| {
            if requests.len() < CHANGES_MAX {
                requests.extend(make(payload));
            }
        })?;
        Ok(requests)
    }

    /// Makes requests, some of which may be refused for these reasons.
    fn call_all(&mut self, requests: &[Request], accepted: &[i32]) -> io::Result<()> {
        for request in requests {
            match self.call(request) {
                Err(err)
                    if !accepted
                        .iter()
                        .any(|errno| err.raw_os_error() == Some(*errno)) =>
                {
                    return Err(err);
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}
