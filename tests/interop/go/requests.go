package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
)

// ask sends so many requests, one after the other, and says what was answered.
func ask(namesrv, topic string, count int) {
	asking := started(namesrv, "go_ask")
	// The first heartbeat goes to the brokers of topics it has sent to, a second after the start; a reply that comes
	// before finds nobody.
	end(first(asking, topic))
	time.Sleep(3 * time.Second)
	for number := 0; number < count; number++ {
		message := primitive.NewMessage(topic, []byte(fmt.Sprintf("q%d", number)))
		message.WithTag("question")
		reply, err := asking.Request(context.Background(), 30*time.Second, message)
		if err != nil {
			panic(err)
		}
		fmt.Printf("REPLY %d %s\n", number, reply.Body)
	}
	end(asking.Shutdown())
}

// answer replies to so many requests with "go: " and their bodies.
func answer(namesrv, topic string, count int) {
	replying := started(namesrv, "go_answer")
	member, err := rocketmq.NewPushConsumer(
		consumer.WithNameServer(primitive.NamesrvAddr{namesrv}),
		consumer.WithGroupName("go_answer_"+topic),
		consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset),
	)
	end(err)
	answered := make(chan bool, count)
	listen := func(_ context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		for _, message := range messages {
			reply, err := consumer.CreateReplyMessage(message, nil)
			end(err)
			reply.Body = append([]byte("go: "), message.Body...) // v2.1.2 takes a body for properties, and loses it
			sent, err := replying.SendSync(context.Background(), reply)
			end(err)
			fmt.Println("REPLIED", sent.Status)
			answered <- true
		}
		return consumer.ConsumeSuccess, nil
	}
	end(member.Subscribe(topic, consumer.MessageSelector{Type: consumer.TAG, Expression: "question"}, listen))
	end(member.Start())
	for left := count; left > 0; left-- {
		<-answered
	}
	end(member.Shutdown())
	end(replying.Shutdown())
}

func first(asking rocketmq.Producer, topic string) error {
	_, err := asking.SendSync(context.Background(), primitive.NewMessage(topic, []byte("first")))
	return err
}

func started(namesrv, group string) rocketmq.Producer {
	one, err := rocketmq.NewProducer(
		producer.WithNameServer(primitive.NamesrvAddr{namesrv}), producer.WithGroupName(group),
	)
	end(err)
	end(one.Start())
	return one
}

func end(err error) {
	if err != nil {
		panic(err)
	}
}

func countOf(text string) int {
	count, err := strconv.Atoi(text)
	if err != nil {
		fmt.Fprintln(os.Stderr, "COUNT must be a number:", text)
		os.Exit(2)
	}
	return count
}
