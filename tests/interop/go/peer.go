// Apache's Go client: a member of a consumer group, for as long as its standard input is open, or requests.
//
//	peer NAMESRV TOPIC GROUP concurrent|orderly
//	peer NAMESRV TOPIC COUNT ask|answer
//
// The member says READY, then "GOT microseconds queue offset body" for each message.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/rlog"
)

func main() {
	rlog.SetLogLevel("error")
	namesrv, topic, group, how := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	switch how {
	case "ask":
		ask(namesrv, topic, countOf(group))
		return
	case "answer":
		answer(namesrv, topic, countOf(group))
		return
	}
	member, err := rocketmq.NewPushConsumer(
		consumer.WithNameServer(primitive.NamesrvAddr{namesrv}),
		consumer.WithGroupName(group),
		consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset),
		consumer.WithConsumerOrder(how == "orderly"),
	)
	if err != nil {
		panic(err)
	}
	var speaking sync.Mutex
	say := func(line string) {
		speaking.Lock()
		defer speaking.Unlock()
		fmt.Println(line)
	}
	listen := func(_ context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		for _, message := range messages {
			say(fmt.Sprintf("GOT %d %d %d %s", time.Now().UnixMicro(), message.Queue.QueueId, message.QueueOffset, message.Body))
		}
		return consumer.ConsumeSuccess, nil
	}
	if err := member.Subscribe(topic, consumer.MessageSelector{}, listen); err != nil {
		panic(err)
	}
	if err := member.Start(); err != nil {
		panic(err)
	}
	say("READY")
	io.Copy(io.Discard, os.Stdin)
	if err := member.Shutdown(); err != nil {
		panic(err)
	}
}
