// A Go test with a broker of its own (Apache's Go client): the broker is a child process that ends with the test run.
package orders

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
	"github.com/apache/rocketmq-client-go/v2/rlog"
)

var nameServer primitive.NamesrvAddr

func TestMain(m *testing.M) {
	rlog.SetLogLevel("error")
	broker := exec.Command("trio-rmq", "testing", "serve")
	broker.Stderr = os.Stderr
	input, err := broker.StdinPipe() // the broker ends when it is closed, by whatever end of this process
	check(err)
	output, err := broker.StdoutPipe()
	check(err)
	check(broker.Start())
	var where struct{ NameServer string }
	check(json.NewDecoder(output).Decode(&where))
	nameServer = primitive.NamesrvAddr{where.NameServer}
	status := m.Run()
	check(input.Close())
	check(broker.Wait())
	os.Exit(status)
}

func TestOrdersArrive(t *testing.T) {
	shop, err := rocketmq.NewProducer(producer.WithNameServer(nameServer), producer.WithGroupName("shop"))
	check(err)
	check(shop.Start())
	defer shop.Shutdown()
	for _, item := range []string{"lamp", "chair", "table"} {
		result, err := shop.SendSync(context.Background(), primitive.NewMessage("Orders", []byte(item)))
		check(err)
		if result.Status != primitive.SendOK {
			t.Fatalf("%s: %v", item, result)
		}
	}
	packed := make(chan string, 3)
	warehouse, err := rocketmq.NewPushConsumer(
		consumer.WithNameServer(nameServer),
		consumer.WithGroupName("warehouse"),
		consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset),
	)
	check(err)
	check(warehouse.Subscribe("Orders", consumer.MessageSelector{},
		func(_ context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
			for _, message := range messages {
				packed <- string(message.Body)
			}
			return consumer.ConsumeSuccess, nil
		}))
	check(warehouse.Start())
	defer warehouse.Shutdown()
	missing := map[string]bool{"lamp": true, "chair": true, "table": true}
	for len(missing) > 0 {
		select {
		case item := <-packed:
			delete(missing, item)
		case <-time.After(time.Minute):
			t.Fatalf("not packed: %v", missing)
		}
	}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
