package interop;

import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/**
 * A push consumer that fails, on Apache's client, and what it is given.
 *
 * <pre>
 *   RetryPeer NAMESRV TOPIC GROUP MAX
 * </pre>
 * Of the four messages sent, {@code later} waits a delay level and is consumed; {@code fails} never is; {@code level}
 * asks for level 2 each time; {@code gives up} asks for its dead letter at once. Each delivery is a line
 * {@code GOT body topic queue-topic reconsume-times delay-level tags keys user-property retry-topic}, sorted by body.
 */
public final class RetryPeer {
    private RetryPeer() {
    }

    public static void main(String[] args) throws Exception {
        int most = Integer.parseInt(args[3]);
        CountDownLatch left = new CountDownLatch(1 + 2 * (most + 1) + 1);
        Map<String, StringBuilder> lines = new TreeMap<>();
        DefaultMQProducer producer = new DefaultMQProducer("retry_peer");
        producer.setNamesrvAddr(args[0]);
        producer.start();
        producer.send(new Message(args[1], "first", "first".getBytes(StandardCharsets.UTF_8)));
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(args[2]);
        consumer.setNamesrvAddr(args[0]);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.setMaxReconsumeTimes(most);
        consumer.subscribe(args[1], "tag");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            MessageExt message = messages.get(0);
            String body = new String(message.getBody(), StandardCharsets.UTF_8);
            synchronized (lines) {
                lines.computeIfAbsent(body, any -> new StringBuilder()).append(
                    "GOT " + body + " " + message.getTopic() + " " + context.getMessageQueue().getTopic() + " "
                    + message.getReconsumeTimes() + " " + message.getDelayTimeLevel() + " " + message.getTags() + " "
                    + message.getKeys() + " " + message.getUserProperty("color") + " "
                    + message.getProperty("RETRY_TOPIC") + "\n");
            }
            left.countDown();
            if (body.equals("later")) {
                return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            }
            context.setDelayLevelWhenNextConsume(body.equals("level") ? 2 : body.equals("gives up") ? -1 : 0);
            return ConsumeConcurrentlyStatus.RECONSUME_LATER;
        });
        consumer.start();
        for (String body : new String[] {"later", "fails", "level", "gives up"}) {
            Message message = new Message(args[1], "tag", "key-" + body, body.getBytes(StandardCharsets.UTF_8));
            message.putUserProperty("color", "blue");
            if (body.equals("later")) {
                message.setDelayTimeLevel(2);
            }
            producer.send(message);
        }
        boolean all = left.await(150, TimeUnit.SECONDS);
        Thread.sleep(5000);
        synchronized (lines) {
            for (StringBuilder of : lines.values()) {
                System.out.print(of);
            }
        }
        System.out.flush();
        System.exit(all ? 0 : 1);
    }
}
