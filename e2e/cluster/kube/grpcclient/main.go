// Command grpcclient is an ordinary grpc-go client: no resolver, no balancer, no dialer of its own. All that it knows of a
// proxy is what grpc-go itself reads from HTTPS_PROXY and NO_PROXY; the target's name then goes to the proxy as it is, in a
// CONNECT, and one channel is one connection. Whatever balances its calls is not in here.
//
//	grpcclient -target greeter.demo:50051 -n 100            calls of every kind once, one JSON object, 0 when all was as it should be
//	grpcclient -target greeter.demo:50051 -rate 50 -seconds 10    unary calls at a rate, JSON lines by second
//	grpcclient sleep                                        nothing until SIGTERM: a pod to run it in
//
// helloworld/ is made from crates/testkit/proto/helloworld.proto by protoc-gen-go.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"posthouse.invalid/e2e/cluster/kube/grpcclient/helloworld"
)

const (
	service = "/helloworld.Greeter/"
	// Messages of each stream.
	messages = 5
	// What the server waits when the client will not: longer than any test.
	forever = 600_000
)

func main() {
	target := flag.String("target", "", "whom to call, `HOST:PORT`")
	n := flag.Int("n", 100, "unary calls, one after the other")
	pods := flag.Int("pods", 1, "how many different pods must have answered these")
	rate := flag.Int("rate", 0, "load: unary calls a second, answers or not")
	seconds := flag.Int("seconds", 10, "load: how long; 0 is until SIGTERM")
	timeout := flag.Duration("timeout", 10*time.Second, "deadline of each call")
	flag.Parse()

	// Process 1 of a container has no default action for SIGTERM.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if flag.Arg(0) == "sleep" {
		<-ctx.Done()
		return
	}
	if *target == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(64)
	}
	channel, err := grpc.NewClient(*target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		fmt.Fprintln(os.Stderr, "grpcclient:", err)
		os.Exit(64)
	}
	defer channel.Close()
	greeter := client{channel, *timeout}
	well := false
	if *rate > 0 {
		well = greeter.load(ctx, *rate, *seconds)
	} else {
		well = greeter.check(ctx, *n, *pods)
	}
	if !well {
		os.Exit(1)
	}
}

type client struct {
	channel *grpc.ClientConn
	timeout time.Duration
}

// result is what check prints.
type result struct {
	Unary        unary   `json:"unary"`
	ServerStream streams `json:"server_stream"`
	Bidi         streams `json:"bidi"`
	// Codes as the client sees them.
	Deadline string `json:"deadline"`
	Cancel   string `json:"cancel"`
	// What is not as it should be.
	Problems []string `json:"problems"`
}

type unary struct {
	OK     int            `json:"ok"`
	Failed map[string]int `json:"failed"`
	ByPod  map[string]int `json:"by_pod"`
	ByNode map[string]int `json:"by_node"`
}

type streams struct {
	Replies int    `json:"replies"`
	Pod     string `json:"pod"`
	Error   string `json:"error,omitempty"`
}

func (c client) check(ctx context.Context, n, pods int) bool {
	r := result{
		Unary:        c.unaryCalls(ctx, n),
		ServerStream: c.serverStream(ctx),
		Bidi:         c.bidi(ctx),
		Deadline:     c.deadline(ctx).String(),
		Cancel:       c.cancel(ctx).String(),
		Problems:     []string{},
	}
	expect := func(holds bool, problem string, about ...any) {
		if !holds {
			r.Problems = append(r.Problems, fmt.Sprintf(problem, about...))
		}
	}
	expect(r.Unary.OK == n, "%d of %d unary calls succeeded", r.Unary.OK, n)
	expect(len(r.Unary.ByPod) >= pods, "%d pods answered, not %d", len(r.Unary.ByPod), pods)
	for name, stream := range map[string]streams{"server stream": r.ServerStream, "bidirectional stream": r.Bidi} {
		expect(stream.Error == "" && stream.Replies == messages, "%s: %d of %d replies %s", name, stream.Replies, messages, stream.Error)
	}
	expect(r.Deadline == codes.DeadlineExceeded.String(), "a deadline that passes gives %s", r.Deadline)
	expect(r.Cancel == codes.Canceled.String(), "a cancelled stream ends with %s", r.Cancel)
	say(r)
	return len(r.Problems) == 0
}

func (c client) unaryCalls(ctx context.Context, n int) unary {
	u := unary{Failed: map[string]int{}, ByPod: map[string]int{}, ByNode: map[string]int{}}
	for range n {
		reply, err := c.sayHello(ctx, 0, c.timeout)
		if err != nil {
			u.Failed[err.Error()]++
			continue
		}
		u.OK++
		u.ByPod[reply.Pod]++
		u.ByNode[reply.Node]++
	}
	return u
}

func (c client) sayHello(ctx context.Context, delayMs uint32, timeout time.Duration) (*helloworld.HelloReply, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	reply := &helloworld.HelloReply{}
	err := c.channel.Invoke(ctx, service+"SayHello", &helloworld.HelloRequest{Name: "go", DelayMs: delayMs}, reply)
	return reply, err
}

func (c client) open(ctx context.Context, method string) (grpc.ClientStream, error) {
	return c.channel.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: method == "Chat"}, service+method)
}

// serverStream reads all replies to one request.
func (c client) serverStream(ctx context.Context) streams {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	stream, err := c.open(ctx, "SayHelloStream")
	if err == nil {
		err = stream.SendMsg(&helloworld.HelloRequest{Name: "go", DelayMs: 1, Replies: messages})
	}
	if err == nil {
		err = stream.CloseSend()
	}
	if err != nil {
		return streams{Error: err.Error()}
	}
	return readAll(stream, streams{})
}

// bidi waits for each request's reply before it sends the next one, so that both directions must be open at once.
func (c client) bidi(ctx context.Context) streams {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	stream, err := c.open(ctx, "Chat")
	if err != nil {
		return streams{Error: err.Error()}
	}
	var s streams
	for range messages {
		reply := &helloworld.HelloReply{}
		if err := stream.SendMsg(&helloworld.HelloRequest{Name: "go"}); err != nil {
			s.Error = err.Error()
			return s
		}
		if err := stream.RecvMsg(reply); err != nil {
			s.Error = err.Error()
			return s
		}
		s.Replies++
		s.Pod = reply.Pod
	}
	if err := stream.CloseSend(); err != nil {
		s.Error = err.Error()
		return s
	}
	return readAll(stream, s)
}

func readAll(stream grpc.ClientStream, s streams) streams {
	for {
		reply := &helloworld.HelloReply{}
		err := stream.RecvMsg(reply)
		if errors.Is(err, io.EOF) {
			return s
		}
		if err != nil {
			s.Error = err.Error()
			return s
		}
		s.Replies++
		s.Pod = reply.Pod
	}
}

// deadline calls with a deadline that passes before the answer.
func (c client) deadline(ctx context.Context) codes.Code {
	_, err := c.sayHello(ctx, forever, 200*time.Millisecond)
	return status.Code(err)
}

// cancel gives a stream up after its first reply.
func (c client) cancel(ctx context.Context) codes.Code {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	stream, err := c.open(ctx, "Chat")
	if err == nil {
		err = stream.SendMsg(&helloworld.HelloRequest{Name: "go"})
	}
	if err == nil {
		err = stream.RecvMsg(&helloworld.HelloReply{})
	}
	if err != nil {
		return status.Code(err)
	}
	cancel()
	return status.Code(stream.RecvMsg(&helloworld.HelloReply{}))
}

// say prints one JSON line.
func say(value any) {
	line, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	os.Stdout.Write(append(line, '\n'))
}
