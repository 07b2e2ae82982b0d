//! A route netlink socket that sends many requests at once.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nix::sys::time::TimeVal;
use std::os::fd::AsRawFd;

use super::message::Request;
use super::step::Step;
use super::{KernelError, Netns, NetnsError, inside};

/// How long the kernel may take to answer. It answers within the call that asks, unless
/// something holds the lock of all network settings, as taking down many links does.
const DEADLINE: Duration = Duration::from_secs(10);
/// How many requests go out in one send. An answer takes up to 2 KiB of the receive buffer
/// (208 KiB by default), and an answer that does not fit is lost.
const BATCH: usize = 64;
/// How large one read may be; the kernel fills at most 32 KiB of a dump.
const READ: usize = 128 * 1024;
/// How often a dump is begun again that changed while it was read.
const DUMP_ATTEMPTS: usize = 10;

const HEADER: usize = 16;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// A route netlink socket of the namespace it was opened in, from wherever it is used.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    received: Vec<u8>,
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netlink").field("fd", &self.socket.as_raw_fd()).finish_non_exhaustive()
    }
}

/// What the kernel said to one request.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// The errno, positive; 0 if it was done.
    pub(crate) errno: i32,
    pub(crate) explanation: Option<String>,
    /// The messages that came back, without their headers.
    pub(crate) messages: Vec<Vec<u8>>,
}

/// How a step ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It changed the kernel.
    Done,
    /// The kernel was as wanted already.
    Satisfied,
    /// The kernel refused.
    Failed(KernelError),
}

impl Netlink {
    /// A socket of the calling thread's namespace.
    ///
    /// # Errors
    /// [`KernelError`] if the kernel gives none.
    pub fn open() -> Result<Self, KernelError> {
        Self::connect().map_err(|cause| KernelError::new("open route netlink socket", cause))
    }

    /// A socket of `netns`.
    ///
    /// # Errors
    /// [`KernelError`] if the namespace cannot be entered or gives none.
    pub fn open_in(netns: &Netns) -> Result<Self, KernelError> {
        let entered =
            |error: NetnsError| KernelError::new("open route netlink socket", io::Error::other(error));
        if Netns::current().and_then(|current| current.is_same(netns)).map_err(entered)? {
            return Self::open();
        }
        inside(netns, Self::open).map_err(entered)?
    }

    fn connect() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        // Kernels before 4.20 do not know it. They dump more than asked for, which is read and
        // left aside.
        let _ = socket.set_netlink_get_strict_chk(true);
        let deadline = TimeVal::new(DEADLINE.as_secs().cast_signed(), 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &deadline)?;
        setsockopt(&socket, sockopt::SendTimeout, &deadline)?;
        Ok(Self { socket, sequence: 0, received: vec![0; READ] })
    }

    /// Makes all `steps`, in order; the kernel goes on after one that it refused.
    ///
    /// # Errors
    /// [`KernelError`] if the socket itself fails; then it is unknown which steps were made.
    pub(crate) fn apply(&mut self, steps: &[Step]) -> Result<Vec<Outcome>, KernelError> {
        let requests: Vec<Request> = steps.iter().map(Step::request).collect();
        let answers = self.exchange(&requests).map_err(|cause| {
            let action = steps.first().map_or_else(String::new, ToString::to_string);
            KernelError::new(action, cause)
        })?;
        Ok(steps.iter().zip(answers).map(|(step, answer)| outcome(step, answer)).collect())
    }

    /// Makes one step; whether it changed anything.
    pub(crate) fn apply_one(&mut self, step: &Step) -> Result<bool, KernelError> {
        match self.apply(std::slice::from_ref(step))?.pop() {
            Some(Outcome::Failed(error)) => Err(error),
            Some(Outcome::Done) => Ok(true),
            Some(Outcome::Satisfied) | None => Ok(false),
        }
    }

    /// Sends all requests in as few calls as fit, and gathers what the kernel says to each.
    pub(crate) fn exchange(&mut self, requests: &[Request]) -> io::Result<Vec<Answer>> {
        let mut answers = Vec::with_capacity(requests.len());
        for batch in requests.chunks(BATCH) {
            answers.append(&mut self.exchange_batch(batch)?);
        }
        Ok(answers)
    }

    fn exchange_batch(&mut self, requests: &[Request]) -> io::Result<Vec<Answer>> {
        let mut buffer = Vec::new();
        let mut waiting = BTreeMap::new();
        for (position, request) in requests.iter().enumerate() {
            let sequence = self.next_sequence();
            waiting.insert(sequence, position);
            serialize(request, request.flags, sequence, &mut buffer);
        }
        self.socket.send(&buffer, 0)?;

        let mut answers: Vec<Answer> = requests.iter().map(|_| Answer::default()).collect();
        while !waiting.is_empty() {
            self.read(|message| {
                let Some(&position) = waiting.get(&message.sequence) else { return };
                let answer = &mut answers[position];
                if message.kind == ERROR {
                    (answer.errno, answer.explanation) = message.error();
                    waiting.remove(&message.sequence);
                } else {
                    answer.messages.push(message.payload.to_vec());
                }
            })?;
        }
        Ok(answers)
    }

    /// All that the kernel holds of what `message` asks for, without the headers.
    ///
    /// A dump during which something changed may lack what did not change; it is read again.
    pub(crate) fn dump(
        &mut self,
        action: &str,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<Vec<u8>>, KernelError> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(found) = self.dump_once(action, message)? {
                return Ok(found);
            }
        }
        Err(KernelError::new(action, io::Error::from_raw_os_error(libc::EINTR)))
    }

    fn dump_once(
        &mut self,
        action: &str,
        message: &RouteNetlinkMessage,
    ) -> Result<Option<Vec<Vec<u8>>>, KernelError> {
        let failed = |cause: io::Error| KernelError::new(action, cause);
        let expected = self.next_sequence();
        let request = Request { message: message.clone(), flags: NLM_F_DUMP };
        let mut buffer = Vec::new();
        serialize(&request, request.flags, expected, &mut buffer);
        self.socket.send(&buffer, 0).map_err(failed)?;

        let mut found = Vec::new();
        let (mut is_done, mut was_interrupted) = (false, false);
        let (mut errno, mut explanation) = (0, None);
        while !is_done {
            self.read(|message| {
                if message.sequence != expected {
                    return;
                }
                was_interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                if message.kind == ERROR || message.kind == DONE {
                    (errno, explanation) = message.error();
                    is_done = true;
                } else {
                    found.push(message.payload.to_vec());
                }
            })
            .map_err(failed)?;
        }
        match errno {
            0 => Ok((!was_interrupted).then_some(found)),
            // A table that holds nothing does not exist, nor does a family that the kernel lacks.
            libc::ENOENT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP => Ok(Some(Vec::new())),
            libc::EINTR => Ok(None),
            errno => Err(KernelError { explanation, ..failed(io::Error::from_raw_os_error(errno)) }),
        }
    }

    /// Waits for one datagram and shows the messages in it.
    fn read(&mut self, mut show: impl FnMut(&Message<'_>)) -> io::Result<()> {
        let length = loop {
            match recv(self.socket.as_raw_fd(), &mut self.received, MsgFlags::MSG_TRUNC) {
                Ok(length) => break length,
                Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)),
                Err(errno) => return Err(errno.into()),
            }
        };
        let datagram =
            self.received.get(..length).ok_or_else(|| io::Error::from_raw_os_error(libc::EMSGSIZE))?;
        each_message(datagram, &mut show);
        Ok(())
    }

    fn next_sequence(&mut self) -> u32 {
        // 0 is what the kernel's own announcements carry.
        self.sequence = self.sequence.checked_add(1).unwrap_or(1);
        self.sequence
    }
}

fn outcome(step: &Step, answer: Answer) -> Outcome {
    match answer.errno {
        0 => Outcome::Done,
        errno if step.is_satisfied_by(errno) => Outcome::Satisfied,
        errno => Outcome::Failed(KernelError {
            action: step.to_string(),
            cause: io::Error::from_raw_os_error(errno),
            explanation: answer.explanation,
        }),
    }
}

fn serialize(request: &Request, flags: u16, sequence: u32, buffer: &mut Vec<u8>) {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request.message.clone()));
    message.finalize();
    let start = buffer.len();
    buffer.resize((start + message.buffer_len()).next_multiple_of(4), 0);
    message.serialize(&mut buffer[start..]);
}

/// One netlink message in a datagram.
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    flags: u16,
    sequence: u32,
    pub(crate) payload: &'a [u8],
}

impl Message<'_> {
    /// What an acknowledgement, or the end of a dump, says: errno and explanation.
    fn error(&self) -> (i32, Option<String>) {
        const CAPPED: u16 = 0x100;
        const HAS_ATTRIBUTES: u16 = 0x200;
        const TEXT: u16 = 1;
        let errno = self.payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code).saturating_neg());
        if self.flags & HAS_ATTRIBUTES == 0 {
            return (errno, None);
        }
        // An acknowledgement repeats the request's header, and all of it unless it is capped.
        let skipped = match self.kind {
            ERROR if self.flags & CAPPED != 0 => 4 + HEADER,
            ERROR => {
                let length = self.payload.get(4..).and_then(|request| request.first_chunk());
                4 + length.map_or(HEADER, |length| u32::from_ne_bytes(*length) as usize).next_multiple_of(4)
            }
            _ => 4,
        };
        let explanation = NlasIterator::new(self.payload.get(skipped..).unwrap_or_default())
            .map_while(Result::ok)
            .find(|attribute| attribute.kind() == TEXT)
            .map(|attribute| String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned());
        (errno, explanation)
    }
}

/// Shows each message of a datagram, as far as it is whole.
pub(crate) fn each_message(mut datagram: &[u8], show: &mut impl FnMut(&Message<'_>)) {
    while let Some((length, header)) = datagram.first_chunk::<HEADER>().map(|header| {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
        (length as usize, *header)
    }) {
        let Some(payload) = datagram.get(HEADER..length) else { return };
        show(&Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            payload,
        });
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}
