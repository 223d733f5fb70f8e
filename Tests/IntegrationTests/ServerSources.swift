/// What servers are told, and programs with sockets.
extension Sources {
  static func nginx(_ folder: String, _ port: Int) -> String {
    """
    daemon off;
    worker_processes 2;
    pid \(folder)/nginx.pid;
    error_log \(folder)/error.log notice;
    events { worker_connections 64; }
    http {
      access_log \(folder)/access.log;
      client_body_temp_path \(folder)/body;
      proxy_temp_path \(folder)/proxy;
      fastcgi_temp_path \(folder)/fastcgi;
      uwsgi_temp_path \(folder)/uwsgi;
      scgi_temp_path \(folder)/scgi;
      server {
        listen 127.0.0.1:\(port);
        listen unix:\(folder)/socket;
        root \(folder)/www;
      }
    }
    """
  }

  /// Asks for a page over TCP and over a unix socket.
  static let webClient = """
    import socket, sys
    for family, address in ((socket.AF_INET, ("127.0.0.1", int(sys.argv[1]))), (socket.AF_UNIX, sys.argv[2])):
        with socket.socket(family) as s:
            s.settimeout(10)
            s.connect(address)
            s.sendall(b"GET / HTTP/1.0\\r\\nHost: here\\r\\n\\r\\n")
            answer = b""
            while part := s.recv(65536): answer += part
            sys.stdout.write(answer.split(b"\\r\\n\\r\\n", 1)[1].decode())
    """

  /// A selector with a server, clients of it, and a pipe that wakes it.
  static let javaSelector = """
    import java.net.*;
    import java.nio.*;
    import java.nio.channels.*;
    import java.nio.file.*;

    public class Echo {
      public static void main(String[] arguments) throws Exception {
        var address = UnixDomainSocketAddress.of(Path.of(arguments[0]));
        var server = ServerSocketChannel.open(StandardProtocolFamily.UNIX);
        server.bind(address);
        server.configureBlocking(false);
        var pipe = Pipe.open();
        pipe.source().configureBlocking(false);
        var selector = Selector.open();
        server.register(selector, SelectionKey.OP_ACCEPT);
        pipe.source().register(selector, SelectionKey.OP_READ);
        var loop = new Thread(() -> {
          try { serve(selector, server); } catch (Exception e) { System.out.println("ERROR " + e); System.exit(1); }
        });
        loop.setDaemon(true);
        loop.start();
        var client = SocketChannel.open(address);
        var buffer = ByteBuffer.allocate(8);
        for (int count = 1; ; count++) {
          buffer.clear().putInt(count).flip();
          client.write(buffer);
          pipe.sink().write(ByteBuffer.wrap(new byte[] {1}));
          buffer.clear().limit(4);
          while (buffer.hasRemaining() && client.read(buffer) >= 0) { }
          if (buffer.flip().getInt() != count) { System.out.println("ERROR another answer"); System.exit(1); }
          System.out.println("count " + count);
          if (count % 16 == 0) { client.close(); client = SocketChannel.open(address); selector.wakeup(); }
          Thread.sleep(5);
        }
      }

      static void serve(Selector selector, ServerSocketChannel server) throws Exception {
        var buffer = ByteBuffer.allocate(4096);
        while (true) {
          selector.select(1000);
          for (var key : selector.selectedKeys()) {
            if (key.isAcceptable()) {
              var channel = server.accept();
              if (channel == null) continue;
              channel.configureBlocking(false);
              channel.register(selector, SelectionKey.OP_READ);
            } else if (key.channel() instanceof SocketChannel channel) {
              buffer.clear();
              if (channel.read(buffer) < 0) { channel.close(); continue; }
              buffer.flip();
              while (buffer.hasRemaining()) channel.write(buffer);
            } else {
              buffer.clear();
              ((Pipe.SourceChannel) key.channel()).read(buffer);
            }
          }
          selector.selectedKeys().clear();
        }
      }
    }
    """

  /// An event loop with a server, clients and threads; processes that talk over pairs and queues.
  static let pythonLoops = """
    import asyncio, multiprocessing, sys

    def square(channel):
        while True: channel.send(channel.recv() ** 2)

    def negate(inbox, outbox):
        while True: outbox.put(-inbox.get())

    async def echo(reader, writer):
        while data := await reader.readexactly(8):
            writer.write(data)
            await writer.drain()

    async def main():
        ours, theirs = multiprocessing.Pipe()
        inbox, outbox = multiprocessing.Queue(), multiprocessing.Queue()
        workers = [multiprocessing.Process(target=square, args=(theirs,), daemon=True),
                   multiprocessing.Process(target=negate, args=(inbox, outbox), daemon=True)]
        for worker in workers: worker.start()
        server = await asyncio.start_unix_server(echo, sys.argv[1])
        clients = [await asyncio.open_unix_connection(sys.argv[1]) for _ in range(5)]
        count = 0
        while True:
            count += 1
            for reader, writer in clients: writer.write(count.to_bytes(8, "little"))
            answers = [int.from_bytes(await reader.readexactly(8), "little") for reader, _ in clients]
            if answers != [count] * 5: print("ERROR", answers, flush=True)
            ours.send(count)
            inbox.put(count)
            loop = asyncio.get_running_loop()
            squared, negated = await loop.run_in_executor(None, lambda: (ours.recv(), outbox.get()))
            if (squared, negated) != (count * count, -count): print("ERROR", squared, negated, flush=True)
            print("count", count, flush=True)
            await asyncio.sleep(0.01)

    asyncio.run(main())
    """

  /// A server and a client in one event loop, a child at the other end of a pair, and the thread pool.
  static let node = """
    const net = require('net'), fs = require('fs'), { fork } = require('child_process');
    if (process.argv[3] === 'child') {
      process.on('message', m => process.send(m));
    } else {
      const child = fork(__filename, [process.argv[2], 'child']);
      net.createServer(socket => socket.pipe(socket)).listen(process.argv[2], () => {
        const client = net.connect(process.argv[2]);
        let count = 1, answers = 0;
        const next = () => {
          if (++answers < 3) return;
          answers = 0;
          fs.appendFile('report', `count ${count}\\n`, () => { count++; setTimeout(send, 5); });
        };
        const send = () => {
          client.write(String(count).padStart(12));
          child.send({ count });
          fs.readFile(__filename, next);
        };
        client.on('data', data => { if (Number(data) !== count) console.log('ERROR', String(data)); next(); });
        child.on('message', m => { if (m.count !== count) console.log('ERROR', m); next(); });
        send();
      });
    }
    """
}
